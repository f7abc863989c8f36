// Stands in for libFuzzer: runs a fuzz test once over every file of the folders named.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int count, char **names) {
    std::vector<std::filesystem::path> files;
    for (int i = 1; i < count; ++i) {
        if (names[i][0] == '-') continue;  // an option of libFuzzer's
        for (const auto &file : std::filesystem::directory_iterator(names[i])) files.push_back(file.path());
    }
    std::sort(files.begin(), files.end());
    for (const auto &file : files) {
        std::ifstream opened(file, std::ios::binary);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(opened), {}};
        LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size());
    }
    std::printf("%zu inputs\n", files.size());
    return files.empty();
}
