#include "json.hpp"

#include <set>
#include <vector>

#include "error.hpp"
#include "mapped_file.hpp"

using nlohmann::json;

namespace {

constexpr int DEEPEST = 64;
constexpr std::size_t LARGEST = 100'000'000;

// nlohmann::json keeps the last of two equal keys in silence; this sees both.
class KeyCheck {
public:
    explicit KeyCheck(const std::string &where) : where_(where) {}

    bool operator()(int depth, json::parse_event_t event, const json &parsed) {
        if (depth > DEEPEST) throw Error(where_ + ": nested deeper than " + std::to_string(DEEPEST));
        if (event == json::parse_event_t::object_start) keys_.emplace_back();
        if (event == json::parse_event_t::object_end) keys_.pop_back();
        if (event == json::parse_event_t::key) add(parsed.get_ref<const std::string &>());
        return true;
    }

private:
    void add(const std::string &key) {
        if (!keys_.back().insert(key).second) throw Error(where_ + ": \"" + printable(key) + "\" appears twice");
    }

    const std::string &where_;
    std::vector<std::set<std::string>> keys_;
};

}  // namespace

json parse_json(const char *text, std::size_t length, const std::string &where) {
    KeyCheck check(where);
    const auto callback = [&check](int depth, json::parse_event_t event, json &parsed) {
        return check(depth, event, parsed);
    };
    try {
        return json::parse(text, text + length, callback);
    } catch (const json::parse_error &failure) {
        // Its message repeats the text, which need not be printable.
        throw Error(where + " is not JSON, at byte " + std::to_string(failure.byte));
    } catch (const json::exception &failure) {
        throw Error(where + " is not JSON: " + printable(failure.what()));
    }
}

json read_json(const std::string &path) {
    const MappedFile file(path);
    if (file.size() == 0) throw Error(path + " is empty");
    if (file.size() > LARGEST) throw Error(path + " has " + std::to_string(file.size()) + " bytes, too many for JSON");
    return parse_json(reinterpret_cast<const char *>(file.data()), file.size(), path);
}
