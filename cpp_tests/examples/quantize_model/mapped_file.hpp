// A regular file mapped for reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

class MappedFile {
public:
    explicit MappedFile(const std::string &path);
    ~MappedFile();
    MappedFile(MappedFile &&other) noexcept;
    MappedFile(const MappedFile &) = delete;
    MappedFile &operator=(const MappedFile &) = delete;
    MappedFile &operator=(MappedFile &&) = delete;

    const std::string &path() const { return path_; }
    const std::uint8_t *data() const { return data_; }  // nullptr for an empty file
    std::size_t size() const { return size_; }

private:
    void map(int descriptor);

    std::string path_;
    const std::uint8_t *data_ = nullptr;
    std::size_t size_ = 0;
};
