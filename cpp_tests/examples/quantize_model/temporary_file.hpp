// A file that appears under its name complete, or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

class TemporaryFile {
public:
    // Creates a file beside `target`. A signal that ends the program removes it, as the destructor does.
    explicit TemporaryFile(const std::string &target);
    ~TemporaryFile();
    TemporaryFile(const TemporaryFile &) = delete;
    TemporaryFile &operator=(const TemporaryFile &) = delete;

    const std::string &path() const { return path_; }
    const std::string &target() const { return target_; }

    void write(const void *data, std::size_t bytes, std::uint64_t offset);
    // Data and metadata are on the disk when it returns.
    void sync();
    // Takes the target's name, replacing what has it.
    void rename();

private:
    std::string target_;
    std::string path_;
    int descriptor_;
    int slot_;
};

// A rename is on the disk when its folder is.
void sync_folder_of(const std::string &path);
