#include "mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "error.hpp"

MappedFile::MappedFile(const std::string &path) : path_(path) {
    // O_NONBLOCK: a pipe under this name must not make the program wait.
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) throw system_error("open", path);
    try {
        map(descriptor);
    } catch (...) {
        ::close(descriptor);
        throw;
    }
    ::close(descriptor);
}

void MappedFile::map(int descriptor) {
    struct stat status;
    if (::fstat(descriptor, &status) != 0) throw system_error("read", path_);
    if (!S_ISREG(status.st_mode)) throw Error(path_ + " is not a regular file");
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;
    void *start = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (start == MAP_FAILED) throw system_error("map", path_);
    data_ = static_cast<const std::uint8_t *>(start);
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::uint8_t *>(data_), size_);
}

MappedFile::MappedFile(MappedFile &&other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
