#include "json.hpp"

#include <algorithm>
#include <locale.h>

namespace effc_rt {
namespace {

struct Parser {
  const char* begin;
  const char* p;
  const char* end;

  [[noreturn]] void bad(const char* what) {
    fail("the manifest is not valid JSON: %s at byte %lld", what, static_cast<long long>(p - begin));
  }
  void space() {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
      ++p;
  }
  bool literal(const char* word) {
    size_t n = strlen(word);
    if (size_t(end - p) < n || memcmp(p, word, n) != 0) return false;
    p += n;
    return true;
  }

  Json value(int depth) {
    if (depth > Json::kMaxDepth) bad("nested too deeply");
    space();
    if (p == end) bad("unexpected end");
    Json j;
    switch (*p) {
      case '{': object(j, depth); break;
      case '[': array(j, depth); break;
      case '"':
        j.type = Json::kString;
        j.s = string();
        break;
      case 't':
      case 'f':
        j.type = Json::kBool;
        j.b = *p == 't';
        if (!literal(j.b ? "true" : "false")) bad("unknown word");
        break;
      case 'n':
        if (!literal("null")) bad("unknown word");
        break;
      default: number(j);
    }
    return j;
  }

  void array(Json& j, int depth) {
    j.type = Json::kArray;
    ++p;
    space();
    if (p < end && *p == ']') {
      ++p;
      return;
    }
    for (;;) {
      j.items.push_back(value(depth + 1));
      space();
      if (p == end) bad("unexpected end");
      if (*p == ',') {
        ++p;
      } else if (*p == ']') {
        ++p;
        return;
      } else {
        bad("expected ',' or ']'");
      }
    }
  }

  void object(Json& j, int depth) {
    j.type = Json::kObject;
    ++p;
    space();
    if (p < end && *p == '}') {
      ++p;
      return;
    }
    for (;;) {
      space();
      if (p == end || *p != '"') bad("expected a key");
      j.keys.push_back(string());
      space();
      if (p == end || *p != ':') bad("expected ':'");
      ++p;
      j.items.push_back(value(depth + 1));
      space();
      if (p == end) bad("unexpected end");
      if (*p == ',') {
        ++p;
      } else if (*p == '}') {
        ++p;
        break;
      } else {
        bad("expected ',' or '}'");
      }
    }
    std::vector<const std::string*> sorted;
    for (const std::string& key : j.keys)
      sorted.push_back(&key);
    std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return *a < *b; });
    for (size_t k = 1; k < sorted.size(); ++k)
      if (*sorted[k] == *sorted[k - 1]) bad("duplicate key");
  }

  unsigned hex4() {
    if (end - p < 4) bad("unexpected end");
    unsigned code = 0;
    for (int k = 0; k < 4; ++k, ++p) {
      char c = *p;
      unsigned digit = c >= '0' && c <= '9'   ? unsigned(c - '0')
                       : c >= 'a' && c <= 'f' ? unsigned(c - 'a' + 10)
                       : c >= 'A' && c <= 'F' ? unsigned(c - 'A' + 10)
                                              : 16u;
      if (digit == 16) bad("bad \\u escape");
      code = code * 16 + digit;
    }
    return code;
  }

  static void utf8(std::string& out, unsigned c) {
    if (c < 0x80) {
      out += char(c);
    } else if (c < 0x800) {
      out += char(0xC0 | (c >> 6));
      out += char(0x80 | (c & 63));
    } else if (c < 0x10000) {
      out += char(0xE0 | (c >> 12));
      out += char(0x80 | ((c >> 6) & 63));
      out += char(0x80 | (c & 63));
    } else {
      out += char(0xF0 | (c >> 18));
      out += char(0x80 | ((c >> 12) & 63));
      out += char(0x80 | ((c >> 6) & 63));
      out += char(0x80 | (c & 63));
    }
  }

  std::string string() {
    std::string out;
    ++p;
    for (;;) {
      const char* start = p;
      while (p < end && *p != '"' && *p != '\\' && static_cast<unsigned char>(*p) >= 0x20)
        ++p;
      out.append(start, p);
      if (p == end) bad("unterminated string");
      if (*p == '"') {
        ++p;
        return out;
      }
      if (*p != '\\') bad("control character in a string");
      if (++p == end) bad("unterminated string");
      char c = *p++;
      switch (c) {
        case '"':
        case '\\':
        case '/': out += c; break;
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'n': out += '\n'; break;
        case 'r': out += '\r'; break;
        case 't': out += '\t'; break;
        case 'u': {
          unsigned code = hex4();
          if (code >= 0xD800 && code < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
            p += 2;
            unsigned low = hex4();
            if (low < 0xDC00 || low > 0xDFFF) bad("bad surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
          } else if (code >= 0xD800 && code < 0xE000) {
            bad("lone surrogate");
          }
          utf8(out, code);
          break;
        }
        default: bad("unknown escape");
      }
    }
  }

  void number(Json& j) {
    const char* start = p;
    if (p < end && *p == '-') ++p;
    const char* digits = p;
    while (p < end && *p >= '0' && *p <= '9')
      ++p;
    if (p == digits || (p - digits > 1 && *digits == '0')) bad("bad number");
    bool real = false;
    if (p < end && *p == '.') {
      real = true;
      const char* after = ++p;
      while (p < end && *p >= '0' && *p <= '9')
        ++p;
      if (p == after) bad("bad number");
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
      real = true;
      ++p;
      if (p < end && (*p == '+' || *p == '-')) ++p;
      const char* after = p;
      while (p < end && *p >= '0' && *p <= '9')
        ++p;
      if (p == after) bad("bad number");
    }
    if (!real) {
      int64_t n = 0;
      bool negative = *start == '-', big = false;
      for (const char* q = digits; q < p; ++q) {
        int digit = *q - '0';
        big = big || __builtin_mul_overflow(n, 10, &n) ||
              (negative ? __builtin_sub_overflow(n, digit, &n) : __builtin_add_overflow(n, digit, &n));
      }
      if (!big) {
        j.type = Json::kInt;
        j.i = n;
        j.f = double(n);
        return;
      }
    }
    static const locale_t c_locale = newlocale(LC_ALL_MASK, "C", nullptr);  // strtod must not obey the user's comma
    j.type = Json::kFloat;
    j.f = strtod_l(std::string(start, p).c_str(), nullptr, c_locale);
  }
};

}  // namespace

Json Json::parse(const char* text, size_t size) {
  Parser parser{text, text, text + size};
  Json j = parser.value(0);
  parser.space();
  if (parser.p != parser.end) parser.bad("trailing text");
  return j;
}

}  // namespace effc_rt
