// What one libcurl multi thread can do, 50 POSTs at a time to the URL given: prints "name value".
#include <curl/curl.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

namespace {
size_t discard(char* /*data*/, size_t size, size_t count, void* /*user*/) { return size * count; }
}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: http URL\n");
    return 2;
  }
  constexpr int kParallel = 50, kCount = 100'000;
  const std::string body(200, 'b');
  curl_global_init(CURL_GLOBAL_DEFAULT);
  CURLM* multi = curl_multi_init();
  std::vector<CURL*> handles;
  for (int i = 0; i < kParallel; ++i) {
    CURL* easy = curl_easy_init();
    curl_easy_setopt(easy, CURLOPT_URL, argv[1]);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, static_cast<long>(body.size()));
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body.data());
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, discard);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_multi_add_handle(multi, easy);
    handles.push_back(easy);
  }
  int begun = kParallel, done = 0;
  const auto start = std::chrono::steady_clock::now();
  while (done < kCount) {
    int running = 0, left = 0;
    curl_multi_perform(multi, &running);
    while (CURLMsg* message = curl_multi_info_read(multi, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      if (message->data.result != CURLE_OK) {
        std::fprintf(stderr, "limits: %s\n", curl_easy_strerror(message->data.result));
        return 1;
      }
      ++done;
      CURL* easy = message->easy_handle;
      curl_multi_remove_handle(multi, easy);
      if (begun < kCount) {
        curl_multi_add_handle(multi, easy);
        ++begun;
      }
    }
    if (done < kCount) curl_multi_poll(multi, nullptr, 0, 1000, nullptr);
  }
  std::printf("libcurl_multi %.0f\n", kCount / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  for (CURL* easy : handles) curl_easy_cleanup(easy);
  curl_multi_cleanup(multi);
  curl_global_cleanup();
  return 0;
}
