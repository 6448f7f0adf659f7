#include "temporary_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "error.hpp"

namespace {

// What a signal handler may read: paths in static memory, each valid while its flag is set.
constexpr int SLOTS = 4;
char slot_path[SLOTS][PATH_MAX];
std::atomic<bool> slot_used[SLOTS];

constexpr int FATAL_SIGNALS[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};

// Only async-signal-safe calls. The handler is gone (SA_RESETHAND), so the second raise ends the program.
extern "C" void remove_and_end(int number) {
    for (int slot = 0; slot < SLOTS; ++slot) {
        if (slot_used[slot]) ::unlink(slot_path[slot]);
    }
    ::raise(number);
}

// A signal that the caller has us ignore stays ignored.
void catch_signals() {
    for (const int number : FATAL_SIGNALS) {
        struct sigaction old;
        if (::sigaction(number, nullptr, &old) != 0 || old.sa_handler == SIG_IGN) continue;
        struct sigaction action {};
        action.sa_handler = remove_and_end;
        action.sa_flags = static_cast<int>(SA_RESETHAND);
        ::sigaction(number, &action, nullptr);
    }
}

int take_slot(const std::string &path) {
    for (int slot = 0; slot < SLOTS; ++slot) {
        if (slot_used[slot] || path.size() >= PATH_MAX) continue;
        std::memcpy(slot_path[slot], path.c_str(), path.size() + 1);
        slot_used[slot] = true;
        return slot;
    }
    throw Error("too many temporary files, or too long a path: " + path);
}

}  // namespace

TemporaryFile::TemporaryFile(const std::string &target)
    : target_(target), path_(target + "." + std::to_string(::getpid()) + ".tmp") {
    catch_signals();
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0) throw system_error("create", target_);
    try {
        slot_ = take_slot(path_);
    } catch (...) {
        ::close(descriptor_);
        ::unlink(path_.c_str());
        throw;
    }
}

TemporaryFile::~TemporaryFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (slot_used[slot_]) ::unlink(path_.c_str());
    slot_used[slot_] = false;
}

void TemporaryFile::write(const void *data, std::size_t bytes, std::uint64_t offset) {
    const auto *next = static_cast<const char *>(data);
    while (bytes > 0) {
        const ssize_t written = ::pwrite(descriptor_, next, bytes, static_cast<off_t>(offset));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) throw system_error("write", target_);
        next += written;
        bytes -= static_cast<std::size_t>(written);
        offset += static_cast<std::uint64_t>(written);
    }
}

void TemporaryFile::sync() {
    if (::fsync(descriptor_) != 0) throw system_error("write", target_);
}

void TemporaryFile::rename() {
    if (std::rename(path_.c_str(), target_.c_str()) != 0) throw system_error("create", target_);
    slot_used[slot_] = false;
}

void sync_folder_of(const std::string &path) {
    std::string folder = std::filesystem::path(path).parent_path().string();
    if (folder.empty()) folder = ".";
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) throw system_error("open", folder);
    const bool synced = ::fsync(descriptor) == 0 || errno == EINVAL;  // some file systems have no fsync of folders
    ::close(descriptor);
    if (!synced) throw system_error("write", folder);
}
