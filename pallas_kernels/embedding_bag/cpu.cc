// Inner products with rows of a table; its reads sorted by row; and sums of the reads of each row,
// with Adam in the same pass: they are added up in registers, and the row and its moments are read
// and written once, on all threads of XLA's pool. (XLA's own scatter is on one, array by array.)

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kTokens = 16;   // that a thread takes at once
constexpr int64_t kAhead = 4;     // rows that are asked for before they are needed
constexpr int64_t kLine = 16;     // floats of a cache line
constexpr int64_t kStrip = 64;    // columns whose sums stand in registers
constexpr int64_t kReads = 2048;  // that a thread takes at once; no result depends on the threads
constexpr int kDigit = 11;        // bits that are sorted by at once: their counts stay in cache

// Calls `work(i)` for 0 <= i < count on the pool's threads and this one; returns when all are done.
// A thread of the pool that comes late finds nothing left, and touches nothing of the caller's.
void ForEach(ffi::ThreadPool& pool, int64_t count, const std::function<void(int64_t)>& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all;
  };
  auto shared = std::make_shared<Shared>();
  const auto* job = &work;
  const std::function<void()> run = [shared, count, job] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < count; ++mine) (*job)(i);
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done += mine;
    if (shared->done == count) shared->all.notify_all();
  };
  for (int64_t i = 1; i < std::min(pool.num_threads(), count); ++i) {
    pool.Schedule(std::function<void()>(run));
  }
  run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->done == count; });
}

// See cpu.py.
ffi::Error DotBag(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> values, ffi::Buffer<ffi::S32> ids,
                  ffi::Buffer<ffi::F32> vectors, ffi::ResultBuffer<ffi::F32> dots) {
  const int64_t rows = values.dimensions()[0], dim = values.dimensions()[1];
  const int64_t tokens = ids.dimensions()[0], slots = ids.dimensions()[1];
  const auto row = [&](int32_t id) -> const float* {
    return 0 <= id && id < rows ? values.typed_data() + id * dim : nullptr;
  };
  ForEach(pool, (tokens + kTokens - 1) / kTokens, [&](int64_t part) {
    for (int64_t t = part * kTokens; t < std::min(tokens, (part + 1) * kTokens); ++t) {
      const float* x = vectors.typed_data() + t * dim;
      const int32_t* id = ids.typed_data() + t * slots;
      for (int64_t s = 0; s < slots; ++s) {
        if (const float* soon = s + kAhead < slots ? row(id[s + kAhead]) : nullptr) {
          for (int64_t j = 0; j < dim; j += kLine) __builtin_prefetch(soon + j);
        }
        const float* mine = row(id[s]);
        float lanes[kStrip] = {};
        int64_t j = 0;
        for (; mine && j + kStrip <= dim; j += kStrip) {
          for (int64_t l = 0; l < kStrip; ++l) lanes[l] += x[j + l] * mine[j + l];
        }
        for (int64_t l = 0; mine && j + l < dim; ++l) lanes[l] += x[j + l] * mine[j + l];
        for (int64_t half = kStrip / 2; half; half /= 2) {
          for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
        }
        dots->typed_data()[t * slots + s] = lanes[0];
      }
    }
  });
  return ffi::Error::Success();
}

// See cpu.py. Digit by digit, stably, so that equal ids keep their order.
ffi::Error SortReads(ffi::Buffer<ffi::S32> ids, ffi::ResultBuffer<ffi::S32> sorted,
                     ffi::ResultBuffer<ffi::S32> order, int64_t largest) {
  struct Read {
    uint32_t id, at;
  };
  const int64_t count = ids.element_count();
  std::vector<Read> reads(count), next(count);
  for (int64_t i = 0; i < count; ++i) {
    reads[i] = {static_cast<uint32_t>(ids.typed_data()[i]), static_cast<uint32_t>(i)};
  }
  for (int shift = 0; shift < 32 && largest >> shift; shift += kDigit) {
    const auto digit = [&](const Read& read) { return (read.id >> shift) & ((1 << kDigit) - 1); };
    std::vector<int64_t> begin((1 << kDigit) + 1);
    for (const Read& read : reads) ++begin[digit(read) + 1];
    for (int d = 0; d < 1 << kDigit; ++d) begin[d + 1] += begin[d];
    for (const Read& read : reads) next[begin[digit(read)]++] = read;
    reads.swap(next);
  }
  for (int64_t i = 0; i < count; ++i) {
    sorted->typed_data()[i] = static_cast<int32_t>(reads[i].id);
    order->typed_data()[i] = static_cast<int32_t>(reads[i].at);
  }
  return ffi::Error::Success();
}

struct Numbers {
  float b1, b2, eps;
  float factor;               // of the gradient
  float rate, scale, decay;  // p -= rate m / (sqrt(scale v) + eps) + decay p
};

struct Rows {
  float *p, *m, *v;
  Rows at(int64_t offset) const { return {p + offset, m + offset, v + offset}; }
};

// All reads of a table, sorted by row; and those of one row.
struct Reads {
  Reads(const ffi::Buffer<ffi::S32>& sorted, const ffi::Buffer<ffi::S32>& order,
        const ffi::Buffer<ffi::F32>& weights, const ffi::Buffer<ffi::F32>& vectors, int64_t rows)
      : vectors(vectors.typed_data()), dim(vectors.dimensions()[1]), id_(sorted.typed_data()),
        order_(order.typed_data()), weight_(weights.typed_data()), slots_(weights.dimensions()[1]),
        count_(std::lower_bound(id_, id_ + sorted.element_count(), rows) - id_) {}

  const float* vectors;  // [tokens, dim]
  int64_t dim;
  std::vector<int64_t> tokens;
  std::vector<float> weights;

  // Those of rows; padding comes after them.
  int64_t count() const { return count_; }
  int32_t id(int64_t i) const { return id_[i]; }

  // The first read from `i` on with which a row begins.
  int64_t Begin(int64_t i) const {
    while (0 < i && i < count_ && id_[i] == id_[i - 1]) ++i;
    return i;
  }

  // Takes the reads of the row that begins with read `i`; returns where the next one begins.
  int64_t Take(int64_t i) {
    tokens.clear();
    weights.clear();
    for (const int32_t row = id_[i]; i < count_ && id_[i] == row; ++i) {
      tokens.push_back(order_[i] / slots_);
      weights.push_back(weight_[order_[i]]);
    }
    return i;
  }

 private:
  const int32_t *id_, *order_;
  const float* weight_;
  int64_t slots_, count_;
};

// Sums of the reads' columns from `column` on: N of them (0: `n`, fewer than kStrip).
template <int64_t N>
inline void Add(const Reads& reads, int64_t column, int64_t n, float* g) {
  n = N ? N : n;
  for (size_t i = 0; i < reads.tokens.size(); ++i) {
    const float* from = reads.vectors + reads.tokens[i] * reads.dim + column;
    for (int64_t j = 0; j < n; ++j) g[j] += reads.weights[i] * from[j];
  }
}

// The same columns of a touched row and its moments.
template <int64_t N>
inline void Update(const Numbers& k, const Reads& reads, int64_t column, int64_t n, Rows row,
                   Rows next, float* squares) {
  n = N ? N : n;
  float g[kStrip] = {};
  Add<N>(reads, column, n, g);
  for (int64_t j = 0; j < n; j += kLine) {
    __builtin_prefetch(next.p + j, 1);
    __builtin_prefetch(next.m + j, 1);
    __builtin_prefetch(next.v + j, 1);
  }
  for (int64_t j = 0; j < n; ++j) squares[j] += g[j] * g[j];
  for (int64_t j = 0; j < n; ++j) {
    const float x = k.factor * g[j];
    row.m[j] = k.b1 * row.m[j] + (1 - k.b1) * x;
    row.v[j] = k.b2 * row.v[j] + (1 - k.b2) * x * x;
    row.p[j] -= k.rate * row.m[j] / (std::sqrt(k.scale * row.v[j]) + k.eps) + k.decay * row.p[j];
  }
}

// See cpu.py.
ffi::Error SumRows(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> sorted, ffi::Buffer<ffi::S32> order,
                   ffi::Buffer<ffi::S32> rank, ffi::Buffer<ffi::F32> weights,
                   ffi::Buffer<ffi::F32> vectors, ffi::ResultBuffer<ffi::F32> summed,
                   int64_t rows) {
  const int64_t size = summed->dimensions()[0], dim = summed->dimensions()[1];
  const Reads all(sorted, order, weights, vectors, rows);
  const int64_t chunks = (all.count() + kReads - 1) / kReads;
  ForEach(pool, chunks, [&](int64_t chunk) {
    Reads reads = all;
    const int64_t end = std::min(reads.count(), (chunk + 1) * kReads);
    for (int64_t i = reads.Begin(chunk * kReads), next; i < end; i = next) {
      next = reads.Take(i);
      float* row = summed->typed_data() + rank.typed_data()[i] * dim;
      int64_t j = 0;
      for (; j < dim; j += kStrip) {
        float g[kStrip] = {};
        const int64_t n = std::min(kStrip, dim - j);
        if (n == kStrip) {
          Add<kStrip>(reads, j, n, g);
        } else {
          Add<0>(reads, j, n, g);
        }
        std::copy(g, g + n, row + j);
      }
    }
  });
  const int64_t found = all.count() ? rank.typed_data()[all.count() - 1] + 1 : 0;
  const int64_t zeros = (size - found + kReads - 1) / kReads;
  ForEach(pool, zeros, [&](int64_t part) {
    const int64_t begin = found + part * kReads, end = std::min(size, begin + kReads);
    std::fill(summed->typed_data() + begin * dim, summed->typed_data() + end * dim, 0.0f);
  });
  return ffi::Error::Success();
}

// See cpu.py. Moments and table are updated in place: the results are the operands.
ffi::Error AdamRows(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> sorted, ffi::Buffer<ffi::S32> order,
                    ffi::Buffer<ffi::F32> weights, ffi::Buffer<ffi::F32> vectors,
                    ffi::Buffer<ffi::F32> numbers, ffi::Buffer<ffi::F32>, ffi::Buffer<ffi::F32>,
                    ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::F32> table,
                    ffi::ResultBuffer<ffi::F32> first, ffi::ResultBuffer<ffi::F32> second,
                    ffi::ResultBuffer<ffi::F32> total, float b1, float b2, float eps) {
  const int64_t dim = table->dimensions()[1];
  const Reads all(sorted, order, weights, vectors, table->dimensions()[0]);
  const float* given = numbers.typed_data();
  const Numbers k{b1, b2, eps, given[0], given[1], given[2], given[3]};
  const Rows held{table->typed_data(), first->typed_data(), second->typed_data()};
  const int64_t chunks = (all.count() + kReads - 1) / kReads;
  std::vector<double> sums(chunks, 0.0);

  ForEach(pool, chunks, [&](int64_t chunk) {
    Reads reads = all;
    float squares[kStrip] = {};
    const int64_t end = std::min(reads.count(), (chunk + 1) * kReads);
    for (int64_t i = reads.Begin(chunk * kReads), next; i < end; i = next) {
      next = reads.Take(i);
      const Rows row = held.at(reads.id(i) * dim);
      const Rows soon = held.at(reads.id(next < reads.count() ? next : i) * dim);
      int64_t j = 0;
      for (; j + kStrip <= dim; j += kStrip) {
        Update<kStrip>(k, reads, j, kStrip, row.at(j), soon.at(j), squares);
      }
      if (j < dim) Update<0>(k, reads, j, dim - j, row.at(j), soon.at(j), squares);
    }
    for (float square : squares) sums[chunk] += square;
  });

  double sum = 0;
  for (double one : sums) sum += one;
  total->typed_data()[0] = static_cast<float>(sum);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(memjax_dot_bag, DotBag,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()   // values
                                  .Arg<ffi::Buffer<ffi::S32>>()   // ids
                                  .Arg<ffi::Buffer<ffi::F32>>()   // vectors
                                  .Ret<ffi::Buffer<ffi::F32>>());  // dots

XLA_FFI_DEFINE_HANDLER_SYMBOL(memjax_sort_reads, SortReads,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::S32>>()  // ids
                                  .Ret<ffi::Buffer<ffi::S32>>()  // sorted
                                  .Ret<ffi::Buffer<ffi::S32>>()  // order
                                  .Attr<int64_t>("largest"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(memjax_sum_rows, SumRows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()  // sorted
                                  .Arg<ffi::Buffer<ffi::S32>>()  // order
                                  .Arg<ffi::Buffer<ffi::S32>>()  // rank
                                  .Arg<ffi::Buffer<ffi::F32>>()  // weights
                                  .Arg<ffi::Buffer<ffi::F32>>()  // vectors
                                  .Ret<ffi::Buffer<ffi::F32>>()  // summed
                                  .Attr<int64_t>("rows"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(memjax_adam_rows, AdamRows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()  // sorted
                                  .Arg<ffi::Buffer<ffi::S32>>()  // order
                                  .Arg<ffi::Buffer<ffi::F32>>()  // weights
                                  .Arg<ffi::Buffer<ffi::F32>>()  // vectors
                                  .Arg<ffi::Buffer<ffi::F32>>()  // numbers
                                  .Arg<ffi::Buffer<ffi::F32>>()  // table
                                  .Arg<ffi::Buffer<ffi::F32>>()  // first
                                  .Arg<ffi::Buffer<ffi::F32>>()  // second
                                  .Ret<ffi::Buffer<ffi::F32>>()  // table
                                  .Ret<ffi::Buffer<ffi::F32>>()  // first
                                  .Ret<ffi::Buffer<ffi::F32>>()  // second
                                  .Ret<ffi::Buffer<ffi::F32>>()  // total
                                  .Attr<float>("b1")
                                  .Attr<float>("b2")
                                  .Attr<float>("eps"));
