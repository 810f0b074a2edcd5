#include "json.hpp"

#include <algorithm>
#include <new>
#include <locale.h>
#include <sys/mman.h>

namespace effc_rt {

JsonPages::~JsonPages() {
  for (const auto& [at, size] : pages_)
    munmap(at, size);
}

void* JsonPages::get(size_t size) {
  size = (size + alignof(Json) - 1) / alignof(Json) * alignof(Json);
  if (pages_.empty() || pages_.back().second - used_ < size) {
    constexpr size_t kPages = size_t(1) << 18, kPage = 4096;
    size_t bytes = std::max(kPages, (size + kPage - 1) / kPage * kPage);
    pages_.reserve(pages_.size() + 1);
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    pages_.emplace_back(static_cast<char*>(at), bytes);
    used_ = 0;
  }
  void* result = pages_.back().first + used_;
  used_ += size;
  return result;
}

namespace {

struct Parser {
  JsonPages& pages;
  const char* begin;
  const char* p;
  const char* end;
  std::vector<Json> items;  // of all arrays and objects that are not complete
  std::vector<Json::Text> keys;

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

  // Takes what was pushed since `from`.
  template <typename T>
  Json::List<T> taken(std::vector<T>& stack, size_t from) {
    static_assert(std::is_trivially_copyable_v<T>);
    size_t n = stack.size() - from;
    if (n == 0) return {};
    void* at = pages.get(n * sizeof(T));
    memcpy(at, static_cast<const void*>(stack.data() + from), n * sizeof(T));
    stack.resize(from);
    return {static_cast<const T*>(at), n};
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
    size_t from = items.size();
    ++p;
    space();
    if (p < end && *p == ']') {
      ++p;
      return;
    }
    for (;;) {
      items.push_back(value(depth + 1));
      space();
      if (p == end) bad("unexpected end");
      if (*p == ',') {
        ++p;
      } else if (*p == ']') {
        ++p;
        j.items = taken(items, from);
        return;
      } else {
        bad("expected ',' or ']'");
      }
    }
  }

  void object(Json& j, int depth) {
    j.type = Json::kObject;
    size_t from = items.size(), first_key = keys.size();
    ++p;
    space();
    if (p < end && *p == '}') {
      ++p;
      return;
    }
    for (;;) {
      space();
      if (p == end || *p != '"') bad("expected a key");
      keys.push_back(string());
      space();
      if (p == end || *p != ':') bad("expected ':'");
      ++p;
      items.push_back(value(depth + 1));
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
    j.items = taken(items, from);
    j.keys = taken(keys, first_key);
    std::vector<std::string_view> sorted(j.keys.begin(), j.keys.end());
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) bad("duplicate key");
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

  Json::Text kept(const char* at, size_t size) {
    char* to = static_cast<char*>(pages.get(size + 1));
    memcpy(to, at, size);
    to[size] = 0;
    return {to, size};
  }

  Json::Text string() {
    std::string out;
    ++p;
    for (;;) {
      const char* start = p;
      while (p < end && *p != '"' && *p != '\\' && static_cast<unsigned char>(*p) >= 0x20)
        ++p;
      if (p == end) bad("unterminated string");
      if (*p == '"' && out.empty()) return kept(start, size_t(p++ - start));  // as most are: without escapes
      out.append(start, p);
      if (*p == '"') {
        ++p;
        return kept(out.data(), out.size());
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

Json Json::parse(const char* text, size_t size, JsonPages& pages) {
  Parser parser{pages, text, text, text + size, {}, {}};
  Json j = parser.value(0);
  parser.space();
  if (parser.p != parser.end) parser.bad("trailing text");
  return j;
}

}  // namespace effc_rt
