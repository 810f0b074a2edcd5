// A small strict JSON reader (RFC 8259): UTF-8 text in, a tree out. Refuses duplicate keys, trailing text, and nesting
// beyond kMaxDepth, so that a hostile manifest can neither confuse the reader nor exhaust the stack.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"

namespace effc_rt {

class Json {
 public:
  enum Type : uint8_t { kNull, kBool, kInt, kFloat, kString, kArray, kObject };
  static constexpr int kMaxDepth = 256;

  static Json parse(const char* text, size_t size);  // throws Error with the byte offset

  Type type = kNull;
  bool b = false;
  int64_t i = 0;
  double f = 0;
  std::string s;
  std::vector<Json> items;        // of an array, or an object's values
  std::vector<std::string> keys;  // of an object, parallel to items

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
  const std::string& str(const char* key) const {
    const Json& j = at(key);
    if (!j.is_string()) effc_rt::fail("'%s' in the manifest is not a string", key);
    return j.s;
  }
  int64_t integer(const char* key) const {
    const Json& j = at(key);
    if (!j.is_int()) effc_rt::fail("'%s' in the manifest is not an integer", key);
    return j.i;
  }
  const std::vector<Json>& array(const char* key) const {
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
    return j && j->is_string() ? j->s : otherwise;
  }
};

}  // namespace effc_rt
