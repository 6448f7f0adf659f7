#include "safetensors.hpp"

#include <algorithm>
#include <limits>
#include <tuple>

#include "error.hpp"
#include "json.hpp"

using nlohmann::json;

namespace {

// Where a fault is: begins every message on one tensor.
std::string at(const std::string &path, const std::string &tensor) {
    return path + ": tensor \"" + printable(tensor) + "\"";
}

const json &field(const json &entry, const char *name, const std::string &where) {
    const auto found = entry.find(name);
    if (found == entry.end()) throw Error(where + " has no " + name);
    return *found;
}

std::vector<std::uint64_t> numbers(const json &list, const char *name, const std::string &where) {
    if (!list.is_array()) throw Error(where + ": " + name + " is not a list");
    std::vector<std::uint64_t> result;
    for (const json &entry : list) {
        if (!entry.is_number_unsigned()) {
            throw Error(where + ": " + name + " has " + printable(entry.dump(), 40) + ", must be an integer from 0 up");
        }
        result.push_back(entry.get<std::uint64_t>());
    }
    return result;
}

// Bytes of a shape, with every overflow an error.
std::uint64_t bytes_of_shape(const TensorInfo &tensor, const std::string &where) {
    std::uint64_t elements = 1;
    for (const std::uint64_t extent : tensor.shape) {
        const bool too_large = __builtin_mul_overflow(elements, extent, &elements);
        if (too_large || extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
            throw Error(where + ": shape overflows 64 bits");
        }
    }
    std::uint64_t bits = 0;
    if (__builtin_mul_overflow(elements, std::uint64_t{tensor.bits}, &bits)) {
        throw Error(where + ": shape overflows 64 bits");
    }
    if (bits % 8 != 0) throw Error(where + ": " + std::to_string(bits) + " bits are no whole number of bytes");
    return bits / 8;
}

void read_dtype(TensorInfo &tensor, const json &entry, const std::string &where) {
    const json &dtype = field(entry, "dtype", where);
    if (!dtype.is_string()) throw Error(where + ": dtype is not a string");
    tensor.dtype = dtype.get<std::string>();
    tensor.bits = bits_of_dtype(tensor.dtype);
    if (tensor.bits == 0) throw Error(where + ": unknown dtype \"" + printable(tensor.dtype, 40) + "\"");
}

void read_offsets(TensorInfo &tensor, const json &entry, const std::string &where, std::uint64_t data_bytes) {
    const auto offsets = numbers(field(entry, "data_offsets", where), "data_offsets", where);
    if (offsets.size() != 2) {
        throw Error(where + ": data_offsets has " + std::to_string(offsets.size()) + " numbers, must have 2");
    }
    tensor.begin = offsets[0];
    tensor.end = offsets[1];
    const std::string range = std::to_string(tensor.begin) + " to " + std::to_string(tensor.end);
    if (tensor.begin > tensor.end) throw Error(where + ": data_offsets go backwards, " + range);
    if (tensor.end > data_bytes) {
        throw Error(where + ": data_offsets " + range + " are past the end, the file holds " +
                    std::to_string(data_bytes) + " bytes of data");
    }
}

TensorInfo read_tensor(const std::string &name, const json &entry, const std::string &where, std::uint64_t data_bytes) {
    if (!entry.is_object()) throw Error(where + " is not described by an object");
    TensorInfo tensor;
    tensor.name = name;
    read_dtype(tensor, entry, where);
    tensor.shape = numbers(field(entry, "shape", where), "shape", where);
    read_offsets(tensor, entry, where, data_bytes);
    const std::uint64_t bytes = bytes_of_shape(tensor, where);
    if (bytes != tensor.end - tensor.begin) {
        throw Error(where + ": shape and dtype need " + std::to_string(bytes) + " bytes, data_offsets give " +
                    std::to_string(tensor.end - tensor.begin));
    }
    return tensor;
}

std::map<std::string, std::string> read_metadata(const json &entry, const std::string &path) {
    if (!entry.is_object()) throw Error(path + ": __metadata__ is not an object");
    std::map<std::string, std::string> result;
    for (const auto &[key, value] : entry.items()) {
        if (!value.is_string()) throw Error(path + ": __metadata__ \"" + printable(key) + "\" is not a string");
        result[key] = value.get<std::string>();
    }
    return result;
}

// The header's length, from the first eight bytes.
std::uint64_t header_length(const MappedFile &file) {
    const std::string &path = file.path();
    if (file.size() == 0) throw Error(path + " is empty");
    if (file.size() < 8) throw Error(path + " is truncated: " + std::to_string(file.size()) + " bytes, must have 8");
    std::uint64_t length = 0;
    for (int byte = 7; byte >= 0; --byte) length = length << 8 | file.data()[byte];
    if (length == 0) throw Error(path + ": the header has length 0");
    if (length > LONGEST_HEADER) {
        throw Error(path + ": the header has length " + std::to_string(length) + ", at most " +
                    std::to_string(LONGEST_HEADER) + " is allowed");
    }
    if (length > file.size() - 8) {
        throw Error(path + ": the header has length " + std::to_string(length) + ", past the end of the file of " +
                    std::to_string(file.size()) + " bytes");
    }
    return length;
}

}  // namespace

unsigned bits_of_dtype(const std::string &dtype) {
    static const std::map<std::string, unsigned> table = {
        {"F4", 4},          {"F6_E2M3", 6},    {"F6_E3M2", 6}, {"BOOL", 8},    {"U8", 8},
        {"I8", 8},          {"F8_E4M3", 8},    {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
        {"F8_E5M2FNUZ", 8}, {"U16", 16},       {"I16", 16},    {"F16", 16},    {"BF16", 16},
        {"U32", 32},        {"I32", 32},       {"F32", 32},    {"U64", 64},    {"I64", 64},
        {"F64", 64},        {"C64", 64},
    };
    const auto found = table.find(dtype);
    return found == table.end() ? 0 : found->second;
}

Safetensors::Safetensors(const std::string &path) : file_(path) {
    read_header();
    check_coverage();
}

void Safetensors::read_header() {
    const std::uint64_t length = header_length(file_);
    data_start_ = 8 + length;
    const json header = parse_json(reinterpret_cast<const char *>(file_.data()) + 8, length, path() + ": the header");
    if (!header.is_object()) throw Error(path() + ": the header is not a JSON object");
    for (const auto &[name, entry] : header.items()) {
        if (name == "__metadata__") {
            metadata_ = read_metadata(entry, path());
        } else {
            tensors_.push_back(read_tensor(name, entry, at(path(), name), file_.size() - data_start_));
        }
    }
    std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo &a, const TensorInfo &b) {
        return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
}

// Tensors follow one another without a hole and end with the file: the format asks for it, and no byte is read twice.
void Safetensors::check_coverage() const {
    std::uint64_t reached = 0;
    for (const TensorInfo &tensor : tensors_) {
        const std::string begins = " begins at byte " + std::to_string(tensor.begin);
        if (tensor.begin < reached) throw Error(at(path(), tensor.name) + begins + " and overlaps the one before it");
        if (tensor.begin > reached) {
            throw Error(at(path(), tensor.name) + begins + ", a hole after byte " + std::to_string(reached));
        }
        reached = tensor.end;
    }
    const std::uint64_t data_bytes = file_.size() - data_start_;
    if (reached != data_bytes) {
        throw Error(path() + ": the tensors end at byte " + std::to_string(reached) + " of the data, which has " +
                    std::to_string(data_bytes));
    }
}
