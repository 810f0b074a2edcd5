// A small strict JSON reader (RFC 8259): UTF-8 text in, a tree out. Refuses duplicate keys, trailing text, and nesting
// beyond kMaxDepth, so that a hostile manifest can neither confuse the reader nor exhaust the stack.
//
// A tree is read once, when a model is loaded. It lies in pages of its own that go back to the system together: as
// small blocks of the heap it would leave that as large as it was at its largest.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "common.hpp"

namespace effc_rt {

// What trees lie in. They are gone with it.
class JsonPages {
 public:
  JsonPages() = default;
  JsonPages(const JsonPages&) = delete;
  JsonPages& operator=(const JsonPages&) = delete;
  ~JsonPages();
  void* get(size_t size);  // aligned for any node; throws std::bad_alloc

 private:
  std::vector<std::pair<char*, size_t>> pages_;
  size_t used_ = 0;  // of the last
};

class Json {
 public:
  enum Type : uint8_t { kNull, kBool, kInt, kFloat, kString, kArray, kObject };
  static constexpr int kMaxDepth = 256;

  // A string with a NUL after its end.
  struct Text : std::string_view {
    using std::string_view::string_view;
    const char* c_str() const { return data(); }
    operator std::string() const { return std::string(data(), size()); }
  };
  template <typename T>
  struct List {
    const T* first = nullptr;
    size_t count = 0;
    const T* begin() const { return first; }
    const T* end() const { return first + count; }
    size_t size() const { return count; }
    bool empty() const { return count == 0; }
    const T& operator[](size_t k) const { return first[k]; }
  };

  static Json parse(const char* text, size_t size, JsonPages& pages);  // throws Error with the byte offset

  Type type = kNull;
  bool b = false;
  int64_t i = 0;
  double f = 0;
  Text s;
  List<Json> items;  // of an array, or an object's values
  List<Text> keys;   // of an object, parallel to items

  bool is_null() const { return type == kNull; }
  bool is_int() const { return type == kInt; }
  bool is_string() const { return type == kString; }
  bool is_array() const { return type == kArray; }
  bool is_object() const { return type == kObject; }
  const Json* find(const char* key) const {
    for (size_t k = 0; k < keys.size(); ++k)
      if (keys[k] == key) return &items[k];
    return nullptr;
  }
  // The accessors below throw an Error that names `key`.
  const Json& at(const char* key) const {
    const Json* j = is_object() ? find(key) : nullptr;
    if (!j) effc_rt::fail("the manifest lacks '%s'", key);
    return *j;
  }
  const Text& str(const char* key) const {
    const Json& j = at(key);
    if (!j.is_string()) effc_rt::fail("'%s' in the manifest is not a string", key);
    return j.s;
  }
  int64_t integer(const char* key) const {
    const Json& j = at(key);
    if (!j.is_int()) effc_rt::fail("'%s' in the manifest is not an integer", key);
    return j.i;
  }
  const List<Json>& array(const char* key) const {
    const Json& j = at(key);
    if (!j.is_array()) effc_rt::fail("'%s' in the manifest is not a list", key);
    return j.items;
  }
  const Json& object(const char* key) const {
    const Json& j = at(key);
    if (!j.is_object()) effc_rt::fail("'%s' in the manifest is not an object", key);
    return j;
  }
  bool flag(const char* key) const {  // absent means false
    const Json* j = find(key);
    if (j && j->type != kBool) effc_rt::fail("'%s' in the manifest is not true or false", key);
    return j && j->b;
  }
  std::string str_or(const char* key, const char* otherwise) const {
    const Json* j = find(key);
    return j && j->is_string() ? std::string(j->s) : otherwise;
  }
};

}  // namespace effc_rt
