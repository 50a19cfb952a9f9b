// Adder layers on a CPU, for maps with channels last in memory and sums in float32.
//
// forward:          y[p,m]  = -sum_k |x[p,k] - f[m,k]|
// input gradient:   gx[p,k] = sum_m op(f[m,k] - x[p,k]) * g[p,m], summed over the patches of a pixel
// weight gradient:  gf[m,k] = sum_p op(x[p,k] - f[m,k]) * g[p,m]   (only for op = sign; see reference.py)
// uint8:            y[p,m]  = sum_k |x[p,k] - f[m,k]|
//
// A unit of work is a row of pixels (or a few filters). Its rows of the image are copied to a small
// buffer with their padding, so that the loops know no border. Filters lie in vectors of LANES, one
// filter in a lane. A block of pixels times a few vectors of filters stays in registers.
// Every unit is computed by one thread in one order: results do not depend on the number of threads.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE  // RTLD_DEFAULT
#endif
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define PIXELS 12  // most pixels in a block of two vectors: 24 sums in 32 registers
#elif defined(__AVX2__)
#define LANES 8
#define PIXELS 5
#else
#define LANES 4
#define PIXELS 5
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    int32_t images, height, width, channels, filters, kernel_h, kernel_w;
    int32_t stride_h, stride_w, padding_h, padding_w, out_h, out_w;
    int32_t op;    // of the gradients: 0 clipped, 1 sign
    int32_t zero;  // uint8 value of the padding
    const void *x, *weight, *grad;
    void *out;
} Layer;

// Terms of a partial sum: one long sum would lose digits, and norms behind it amplify that.
#define CHUNK 64

enum { CLIPPED = 0, SIGN = 1 };
typedef void (*Work)(const Layer *, int, char *);

typedef struct {
    const Layer *layer;
    Work work;
    int units;
    size_t scratch;
    atomic_int next, failed;
} Job;

static void *run(void *pointer) {
    Job *job = pointer;
    char *scratch = malloc(job->scratch);
    if (!scratch) {
        atomic_store(&job->failed, 1);
        return NULL;
    }
    for (int unit; (unit = atomic_fetch_add(&job->next, 1)) < job->units;)
        job->work(job->layer, unit, scratch);
    free(scratch);
    return NULL;
}

static void run_here(void *job) { run(job); }

// On the threads of the process's OpenMP, which are torch's (by GCC's interface, which other OpenMPs have, too):
// they spin for milliseconds after each of torch's operators, and threads of our own would wait for their
// processors. Where there is no OpenMP, threads start and end with the call.
static int parallel(const Layer *layer, Work work, int units, size_t scratch, int threads) {
    typedef void Parallel(void (*)(void *), void *, unsigned, unsigned);
    Job job = {layer, work, units, scratch, 0, 0};
    pthread_t others[64];
    int started = 0;
    threads = threads > 64 ? 64 : threads;
    threads = threads > units ? units : threads;
    Parallel *openmp = NULL;
#ifndef NO_OPENMP  // a test sets it
    if (threads > 1) openmp = (Parallel *)dlsym(RTLD_DEFAULT, "GOMP_parallel");
#endif
    if (openmp) {
        openmp(run_here, &job, threads, 0);
        return atomic_load(&job.failed);
    }
    while (started < threads - 1 && !pthread_create(&others[started], NULL, run, &job)) started++;
    run(&job);
    for (int i = 0; i < started; i++) pthread_join(others[i], NULL);
    return atomic_load(&job.failed);
}

static int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

// Copy the rows of the patches of an output row, with padding: [kernel_h][width + 2 padding][step]
static void copy_rows(const Layer *l, int image, int out_y, float *rows, int step) {
    int wide = l->width + 2 * l->padding_w;
    memset(rows, 0, sizeof(float) * l->kernel_h * wide * step);
    for (int i = 0; i < l->kernel_h; i++) {
        int y = out_y * l->stride_h + i - l->padding_h;
        if (y < 0 || y >= l->height) continue;
        const float *from = (const float *)l->x + ((size_t)image * l->height + y) * l->width * l->channels;
        float *to = rows + ((size_t)i * wide + l->padding_w) * step;
        if (step == l->channels)
            memcpy(to, from, sizeof(float) * l->width * step);
        else
            for (int w = 0; w < l->width; w++)
                memcpy(to + (size_t)w * step, from + (size_t)w * l->channels, sizeof(float) * l->channels);
    }
}

// sum + |x - f|. With FMA the multipliers take the sum, so that the adders are free for the difference;
// `one` is 1.
INLINE vec plus_distance(vec sum, float x, vec f, vec one) {
    const ivec positive = 0x7fffffff - (ivec){0};
    const vec distance = (vec)((ivec)(x - f) & positive);
#ifdef __FMA__
    return distance * one + sum;
#else
    (void)one;
    return distance + sum;
#endif
}

static volatile float unity = 1.0f;

INLINE void forward_block(const int R, const int V, const Layer *l, const float *x, const float *f, float *out) {
    const int wide = (l->width + 2 * l->padding_w) * l->channels, step = l->stride_w * l->channels;
    const int run = l->kernel_w * l->channels, out_step = padded(l->filters);
    const size_t vector = (size_t)l->kernel_h * run * LANES;  // filters of the next vector
    const vec one = unity - (vec){0};
    vec sum[16][4];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] = (vec){0};
    for (int i = 0; i < l->kernel_h; i++, x += wide)
        for (int start = 0; start < run; start += CHUNK) {
            const int end = start + CHUNK < run ? start + CHUNK : run;
            for (int k = start; k < end; k++, f += LANES) {
                vec filters[4];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) filters[v] = *(const vec *)(f + v * vector);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) {
#ifdef PRODUCTS  // the loop of a convolution, which benchmarks compare with
                        sum[r][v] += x[r * step + k] * filters[v];
#else
                        sum[r][v] = plus_distance(sum[r][v], x[r * step + k], filters[v], one);
#endif
                    }
            }
            for (int r = 0; r < R; r++)
                for (int v = 0; v < V; v++) {
                    vec *to = (vec *)(out + r * out_step + v * LANES);
                    if (i || start)
                        *to -= sum[r][v];
                    else
                        *to = -sum[r][v];
                    sum[r][v] = (vec){0};
                }
        }
}

#define CASE(R, V) \
    case R: forward_block(R, V, l, x, f, out); break;
#define CASES5(V) CASE(1, V) CASE(2, V) CASE(3, V) CASE(4, V) CASE(5, V)
#define CASES12(V) CASES5(V) CASE(6, V) CASE(7, V) CASE(8, V) CASE(9, V) CASE(10, V) CASE(11, V) CASE(12, V)

static void forward_1(int r, const Layer *l, const float *x, const float *f, float *out) {
    switch (r) { CASES12(1) }
}

static void forward_2(int r, const Layer *l, const float *x, const float *f, float *out) {
#if PIXELS == 12
    switch (r) { CASES12(2) }
#else
    switch (r) { CASES5(2) }
#endif
}

#if LANES == 16
static void forward_4(int r, const Layer *l, const float *x, const float *f, float *out) {
    switch (r) { CASES5(4) CASE(6, 4) }
}
#endif

// The pixels of block `b` of `blocks` nearly equal ones
static int block_start(int all, int blocks, int b) { return (int)((int64_t)all * b / blocks); }

static void forward_row(const Layer *l, int unit, char *scratch) {
    const int image = unit / l->out_h, y = unit % l->out_h;
    const int vectors = padded(l->filters) / LANES, columns = padded(l->filters);
    float *rows = (float *)scratch;
    float *out = rows + (size_t)l->kernel_h * (l->width + 2 * l->padding_w) * l->channels;
    copy_rows(l, image, y, rows, l->channels);
    for (int v = 0, width; v < vectors; v += width) {
        int most = PIXELS;
        width = vectors - v >= 2 ? 2 : 1;
#if LANES == 16
        if (vectors - v >= 4) width = 4, most = 6;  // fewer loads for as many sums
#endif
        if (width == 1) most = 12;
        const float *f = (const float *)l->weight + (size_t)v * LANES * l->kernel_h * l->kernel_w * l->channels;
        const int blocks = (l->out_w + most - 1) / most;
        for (int b = 0; b < blocks; b++) {
            const int first = block_start(l->out_w, blocks, b), r = block_start(l->out_w, blocks, b + 1) - first;
            const float *x = rows + (size_t)first * l->stride_w * l->channels;
            float *to = out + (size_t)first * columns + v * LANES;
            if (width == 1) forward_1(r, l, x, f, to);
            if (width == 2) forward_2(r, l, x, f, to);
#if LANES == 16
            if (width == 4) forward_4(r, l, x, f, to);
#endif
        }
    }
    float *to = (float *)l->out + (size_t)unit * l->out_w * l->filters;
    for (int w = 0; w < l->out_w; w++)
        memcpy(to + (size_t)w * l->filters, out + (size_t)w * columns, sizeof(float) * l->filters);
}

// ---- gradients: sum_t op(moving[t] - resting[r]) * g[r,t]

INLINE vec clipped(vec d) {
    // in this order a NaN stays
#if LANES == 16
    return _mm512_max_ps(_mm512_set1_ps(-1), _mm512_min_ps(_mm512_set1_ps(1), d));
#elif LANES == 8
    return _mm256_max_ps(_mm256_set1_ps(-1), _mm256_min_ps(_mm256_set1_ps(1), d));
#else
    for (int i = 0; i < LANES; i++) d[i] = d[i] > 1 ? 1 : d[i] < -1 ? -1 : d[i];
    return d;
#endif
}

INLINE vec sign_of(vec d) {
    const ivec one = (ivec)(1.0f - (vec){0});
    return (vec)((d > 0) & one) - (vec)((d < 0) & one);
}

typedef struct {
    const float *moving, *g;
} Tap;

typedef struct {
    int taps, terms;       // sums over taps, and over the terms of each
    int moving_term, g_term, g_rest, rest_step, op;
    size_t moving_vector;  // from a vector of `moving` to the next
} Pull;

INLINE void pull_block(const int R, const int V, const int op, const Pull *p, const Tap *taps, const float *resting, float *out) {
    vec rest[8][2], sum[8][2];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) {
            rest[r][v] = *(const vec *)(resting + (size_t)r * p->rest_step + v * LANES);
            sum[r][v] = (vec){0};
        }
    for (int t = 0; t < p->taps; t++) {
        const float *moving = taps[t].moving, *g = taps[t].g;
        for (int k = 0; k < p->terms; k++, moving += p->moving_term, g += p->g_term) {
            vec m[2];
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) m[v] = *(const vec *)(moving + v * p->moving_vector);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) {
                    vec d = m[v] - rest[r][v];
                    sum[r][v] += g[(ptrdiff_t)r * p->g_rest] * (op == SIGN ? sign_of(d) : clipped(d));
                }
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) *(vec *)(out + (size_t)r * p->rest_step + v * LANES) += sum[r][v];
}

#define PULL(R, V, OP) \
    case R: pull_block(R, V, OP, p, taps, resting, out); break;
#define PULLS4(V, OP) PULL(1, V, OP) PULL(2, V, OP) PULL(3, V, OP) PULL(4, V, OP)
#define PULLS8(V, OP) PULLS4(V, OP) PULL(5, V, OP) PULL(6, V, OP) PULL(7, V, OP) PULL(8, V, OP)
#define REST (LANES == 16 ? 6 : 3)  // most resting rows in a block of two vectors

static void pull(int r, int v, const Pull *p, const Tap *taps, const float *resting, float *out) {
#if LANES == 16
    if (p->op == SIGN && v == 2) switch (r) { PULLS8(2, SIGN) }
    else if (p->op == SIGN) switch (r) { PULLS8(1, SIGN) }
    else if (v == 2) switch (r) { PULLS8(2, CLIPPED) }
    else switch (r) { PULLS8(1, CLIPPED) }
#else
    if (p->op == SIGN && v == 2) switch (r) { PULLS4(2, SIGN) }
    else if (p->op == SIGN) switch (r) { PULLS4(1, SIGN) }
    else if (v == 2) switch (r) { PULLS4(2, CLIPPED) }
    else switch (r) { PULLS4(1, CLIPPED) }
#endif
}

static void input_gradient_row(const Layer *l, int unit, char *scratch) {
    const int image = unit / l->height, y = unit % l->height, m = l->filters;
    const int columns = padded(l->channels), margin = l->kernel_w + 2, wide = l->out_w + 2 * margin;
    Tap *taps = (Tap *)scratch;
    float *x = (float *)(taps + l->kernel_h * l->kernel_w), *out = x + (size_t)l->width * columns;
    float *grads = out + (size_t)l->width * columns;  // [kernel_h][margin + out_w + margin][filters]
    memset(x, 0, sizeof(float) * l->width * columns * 2);
    memset(grads, 0, sizeof(float) * l->kernel_h * wide * m);
    const float *from = (const float *)l->x + (size_t)unit * l->width * l->channels;
    for (int w = 0; w < l->width; w++)
        memcpy(x + (size_t)w * columns, from + (size_t)w * l->channels, sizeof(float) * l->channels);
    for (int i = 0; i < l->kernel_h; i++) {
        const int at = y + l->padding_h - i;
        if (at < 0 || at % l->stride_h || at / l->stride_h >= l->out_h) continue;
        const size_t row = (size_t)image * l->out_h + at / l->stride_h;
        memcpy(grads + ((size_t)i * wide + margin) * m, (const float *)l->grad + row * l->out_w * m, sizeof(float) * l->out_w * m);
    }
    Pull p = {0, m, LANES, 1, m, l->stride_w * columns, l->op, (size_t)l->kernel_h * l->kernel_w * m * LANES};
    for (int v = 0, width; v < columns / LANES; v += width) {
        width = columns / LANES - v >= 2 ? 2 : 1;
        const float *f = (const float *)l->weight + v * p.moving_vector;
        for (int residue = 0; residue < l->stride_w; residue++) {
            const int pixels = (l->width - residue + l->stride_w - 1) / l->stride_w;
            const int most = width == 2 ? REST : LANES == 16 ? 8 : 4, blocks = (pixels + most - 1) / most;
            for (int b = 0; b < blocks; b++) {
                const int first = block_start(pixels, blocks, b), r = block_start(pixels, blocks, b + 1) - first;
                p.taps = 0;
                for (int i = 0; i < l->kernel_h; i++) {
                    const int at = y + l->padding_h - i;
                    if (at < 0 || at % l->stride_h || at / l->stride_h >= l->out_h) continue;
                    for (int j = 0; j < l->kernel_w; j++) {
                        const int column = residue + l->padding_w - j;
                        if (column % l->stride_w) continue;
                        // at least 1 - kernel_w, and to + r is at most out_w + kernel_w: within the margin
                        const int to = column / l->stride_w + first;
                        taps[p.taps++] = (Tap){f + ((size_t)i * l->kernel_w + j) * m * LANES, grads + ((ptrdiff_t)i * wide + margin + to) * m};
                    }
                }
                const size_t at = (size_t)(residue + first * l->stride_w) * columns + v * LANES;
                pull(r, width, &p, taps, x + at, out + at);
            }
        }
    }
    float *to = (float *)l->out + (size_t)unit * l->width * l->channels;
    for (int w = 0; w < l->width; w++)
        memcpy(to + (size_t)w * l->channels, out + (size_t)w * columns, sizeof(float) * l->channels);
}

#define FILTERS 4  // of a unit of the weight gradient

// weight and out: [filters][kernel_h][kernel_w][channels, padded]
static void weight_gradient_filters(const Layer *l, int unit, char *scratch) {
    const int first = unit * FILTERS, columns = padded(l->channels), wide = l->width + 2 * l->padding_w;
    const int r = l->filters - first < FILTERS ? l->filters - first : FILTERS;
    const int filter = l->kernel_h * l->kernel_w * columns;
    float *rows = (float *)scratch;
    const Pull p = {1, l->out_w, l->stride_w * columns, l->filters, 1, filter, l->op, LANES};
    for (int row = 0; row < l->images * l->out_h; row++) {
        copy_rows(l, row / l->out_h, row % l->out_h, rows, columns);
        const float *g = (const float *)l->grad + (size_t)row * l->out_w * l->filters + first;
        for (int i = 0; i < l->kernel_h; i++)
            for (int j = 0; j < l->kernel_w; j++)
                for (int v = 0; v < columns; v += LANES) {
                    const size_t at = (size_t)first * filter + (i * l->kernel_w + j) * columns + v;
                    const Tap tap = {rows + ((size_t)i * wide + j) * columns + v, g};
                    pull(r, 1, &p, &tap, (const float *)l->weight + at, (float *)l->out + at);
                }
    }
}

// ---- uint8: patches [out_w][bytes], filters [filters, in fours][bytes], bytes a multiple of 64

#if defined(__AVX512BW__)
#define ROWS 4
typedef __m512i Bytes;
#define LOAD(p) _mm512_loadu_si512(p)
#define ADD_SAD(s, a, b) _mm512_add_epi64(s, _mm512_sad_epu8(a, b))
#define TOTAL(s) (int32_t) _mm512_reduce_add_epi64(s)
#elif defined(__AVX2__)
#define ROWS 2
typedef __m256i Bytes;
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define ADD_SAD(s, a, b) _mm256_add_epi64(s, _mm256_sad_epu8(a, b))
INLINE int32_t total(__m256i s) {
    return (int32_t)(_mm256_extract_epi64(s, 0) + _mm256_extract_epi64(s, 1) + _mm256_extract_epi64(s, 2) + _mm256_extract_epi64(s, 3));
}
#define TOTAL(s) total(s)
#endif

static int bytes_of(const Layer *l) { return (l->kernel_h * l->kernel_w * l->channels + 63) / 64 * 64; }

static void sad_row(const Layer *l, int unit, char *scratch) {
    const int image = unit / l->out_h, y = unit % l->out_h, bytes = bytes_of(l), c = l->channels;
    uint8_t *patches = (uint8_t *)scratch;
    for (int w = 0; w < l->out_w; w++) {
        uint8_t *to = patches + (size_t)w * bytes;
        memset(to, 0, bytes);
        memset(to, l->zero, l->kernel_h * l->kernel_w * c);
        int x = w * l->stride_w - l->padding_w, skip = x < 0 ? -x : 0, end = l->kernel_w;
        if (x + end > l->width) end = l->width - x;
        for (int i = 0; i < l->kernel_h; i++) {
            const int at = y * l->stride_h + i - l->padding_h;
            if (at < 0 || at >= l->height || skip >= end) continue;
            const uint8_t *from = (const uint8_t *)l->x + (((size_t)image * l->height + at) * l->width + x + skip) * c;
            memcpy(to + ((size_t)i * l->kernel_w + skip) * c, from, (size_t)(end - skip) * c);
        }
    }
    int32_t *out = (int32_t *)l->out + (size_t)unit * l->out_w * l->filters;
    for (int f = 0; f < l->filters; f += 4) {
        const uint8_t *weight = (const uint8_t *)l->weight + (size_t)f * bytes;
        const int most = l->filters - f < 4 ? l->filters - f : 4;
        int w = 0;
#ifdef ROWS
        for (; w + ROWS <= l->out_w; w += ROWS) {
            Bytes sum[ROWS][4];
            memset(sum, 0, sizeof sum);
            for (int k = 0; k < bytes; k += sizeof(Bytes)) {
                Bytes b[4];
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) b[j] = LOAD(weight + (size_t)j * bytes + k);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; r++) {
                    Bytes a = LOAD(patches + (size_t)(w + r) * bytes + k);
#pragma GCC unroll 4
                    for (int j = 0; j < 4; j++) sum[r][j] = ADD_SAD(sum[r][j], a, b[j]);
                }
            }
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < most; j++) out[(size_t)(w + r) * l->filters + f + j] = TOTAL(sum[r][j]);
        }
#endif
        for (; w < l->out_w; w++)
            for (int j = 0; j < most; j++) {
                const uint8_t *a = patches + (size_t)w * bytes, *b = weight + (size_t)j * bytes;
                int32_t sum = 0;
                for (int k = 0; k < bytes; k++) sum += a[k] > b[k] ? a[k] - b[k] : b[k] - a[k];
                out[(size_t)w * l->filters + f + j] = sum;
            }
    }
}

// ---- what Python calls; 0, or 1 without memory

int adder_lanes(void) { return LANES; }

int adder_forward(const Layer *l, int threads) {
    const size_t rows = (size_t)l->kernel_h * (l->width + 2 * l->padding_w) * l->channels;
    const size_t out = (size_t)l->out_w * padded(l->filters);
    return parallel(l, forward_row, l->images * l->out_h, sizeof(float) * (rows + out), threads);
}

int adder_input_gradient(const Layer *l, int threads) {
    const size_t x = (size_t)l->width * padded(l->channels) * 2;
    const size_t grads = (size_t)l->kernel_h * (l->out_w + 2 * (l->kernel_w + 2)) * l->filters;
    const size_t taps = sizeof(Tap) * l->kernel_h * l->kernel_w;
    return parallel(l, input_gradient_row, l->images * l->height, taps + sizeof(float) * (x + grads), threads);
}

int adder_weight_gradient(const Layer *l, int threads) {
    const size_t rows = (size_t)l->kernel_h * (l->width + 2 * l->padding_w) * padded(l->channels);
    const int units = (l->filters + FILTERS - 1) / FILTERS;
    return parallel(l, weight_gradient_filters, units, sizeof(float) * rows, threads);
}

int adder_sad(const Layer *l, int threads) {
    return parallel(l, sad_row, l->images * l->out_h, (size_t)l->out_w * bytes_of(l) + 64, threads);
}
