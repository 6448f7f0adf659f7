#include "error.hpp"

#include <cerrno>
#include <cstring>

namespace {

unsigned char byte_at(const std::string &text, std::size_t index) { return static_cast<unsigned char>(text[index]); }

// Whole characters of UTF-8 are kept or cut.
std::size_t end_of_character(const std::string &text, std::size_t index) {
    do ++index;
    while (index < text.size() && (byte_at(text, index) & 0xC0) == 0x80);
    return index;
}

// Of ASCII, and the second set, U+0080 to U+009F.
bool is_control(const std::string &text, std::size_t index) {
    const unsigned char byte = byte_at(text, index);
    if (byte < 0x20 || byte == 0x7F) return true;
    return byte == 0xC2 && index + 1 < text.size() && byte_at(text, index + 1) < 0xA0;
}

}  // namespace

std::string printable(const std::string &text, std::size_t longest) {
    std::string out;
    for (std::size_t index = 0; index < text.size();) {
        const std::size_t end = end_of_character(text, index);
        if (end > longest) return out + "...";
        out += is_control(text, index) ? "?" : text.substr(index, end - index);
        index = end;
    }
    return out;
}

Error system_error(const std::string &verb, const std::string &path) {
    return Error("cannot " + verb + " " + path + ": " + std::strerror(errno));
}
