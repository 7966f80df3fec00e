// Elementary functions as branch-free arithmetic, so that a compiler can vectorise loops over them,
// and the storage types.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define XENT_INLINE inline __attribute__((always_inline))
// Not inlined: two inlined copies of a line may be rounded differently (with and without a fused multiply-add), but a
// loss must have the same bits with and without its gradient.
#define XENT_ONCE __attribute__((noinline))

namespace xent {
namespace XENT_ISA {

template <class To, class From>
XENT_INLINE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

constexpr double log2_e = 1.44269504088896340736;

// `series`: (2ᶠ − 1)/f for |f| ≤ 1/2, lowest power first.
template <class T>
struct Real;

template <>
struct Real<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23, bias = 127, exp_terms = 6, log_terms = 5;
  // Chebyshev fit, relative error of 2ᶠ 5e-9; one term less than Taylor's saves 4% of a row's time.
  static constexpr double series[] = {0.69314718802622878,   0.24022650760568127,   0.055503571142190778,
                                      0.0096180825572778515, 0.0013390863364671234, 0.0001545316294512069};
  static constexpr float magic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
  static constexpr double least_exponent = -126.0;
  static constexpr Int sqrt_half = 0x3f3504f3;
};

template <>
struct Real<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52, bias = 1023, exp_terms = 11, log_terms = 11;
  // Chebyshev fit, relative error 2e-17 before the rounding of its terms; two terms less than Taylor's.
  static constexpr double series[] = {0.6931471805599453,    0.24022650695910097,   0.0555041086648216,
                                      0.009618129107606888,  0.0013333558146416936, 0.0001540353044173605,
                                      1.525273382983612e-05, 1.321544258792169e-06, 1.0178062445845774e-07,
                                      7.072585949269223e-09, 4.4549605981865186e-10};
  static constexpr double magic = 6755399441055744.0;
  static constexpr double least_exponent = -1022.0;
  static constexpr Int sqrt_half = 0x3fe6a09e667f3bcd;
};

// 2ˣᶜ = 2ⁿ·(1 + f·series): n = round(xc) by the magic constant, f = xc − n by one fused multiply-add, so that
// only c is rounded. `exponent` is n, shifted to the exponent bits of a floating-point number.
template <class T>
struct Exp2Parts {
  T f, series;
  std::make_unsigned_t<typename Real<T>::Int> exponent;
};

template <class T>
XENT_INLINE Exp2Parts<T> exp2_parts(T x, T c) {
  using R = Real<T>;
  using U = std::make_unsigned_t<typename R::Int>;
  T shifted = x * c + R::magic;
  T n = shifted - R::magic;
  T f = x * c - n;
  T poly = T(R::series[R::exp_terms - 1]);
#pragma GCC unroll 16
  for (int k = R::exp_terms - 2; k >= 0; --k) poly = poly * f + T(R::series[k]);
  return {f, poly, U(bit_cast<U>(shifted) << R::mantissa)};
}

// c ? a : b, by bits: for a ternary with costly arms compilers make a branch and do not vectorise the loop.
template <class T>
XENT_INLINE T choose(bool c, T a, T b) {
  using I = typename Real<T>::Int;
  const I mask = -I(c);
  return bit_cast<T>(I((bit_cast<I>(a) & mask) | (bit_cast<I>(b) & ~mask)));
}

// x where `keep`, else 0.
template <class T>
XENT_INLINE T only(bool keep, T x) {
  using I = typename Real<T>::Int;
  return bit_cast<T>(I(bit_cast<I>(x) & -I(keep)));
}

// 2ˣᶜ, and 0 for x < least, where xc < R::least_exponent: a subnormal result.
template <class T>
XENT_INLINE T exp2_(T x, T c, T least) {
  using U = std::make_unsigned_t<typename Real<T>::Int>;
  Exp2Parts<T> e = exp2_parts(x, c);
  return only(!(x < least), bit_cast<T>(U(bit_cast<U>(e.series * e.f + T(1)) + e.exponent)));
}

template <class T>
XENT_INLINE T exp_(T x) {
  return exp2_(x, T(log2_e), T(Real<T>::least_exponent / log2_e));
}

template <class T>
XENT_INLINE T expm1_(T x) {
  using U = std::make_unsigned_t<typename Real<T>::Int>;
  Exp2Parts<T> e = exp2_parts(x, T(log2_e));
  const T scale = bit_cast<T>(U(bit_cast<U>(T(1)) + e.exponent));
  return choose(x < T(-40), T(-1), scale * (e.series * e.f) + (scale - T(1)));
}

template <class T>
XENT_INLINE T tanh_(T x) {
  T a = x < 0 ? -x : x;
  T em1 = expm1_(T(2) * a);
  T t = choose(a > T(20), T(1), em1 / (em1 + T(2)));
  return x < 0 ? -t : t;
}

template <class T>
XENT_INLINE T log1p_(T x, T inverse) {  // x ≥ 0, inverse = 1/(1 + x)
  using R = Real<T>;
  using I = typename R::Int;
  T t = T(1) + x;
  I shifted = bit_cast<I>(t) - R::sqrt_half;
  I n = shifted >> R::mantissa;
  T m = bit_cast<T>(I((shifted & ((I(1) << R::mantissa) - 1)) + R::sqrt_half));  // in [√½, √2)
  T s = (m - T(1)) / (m + T(1)), s2 = s * s;
  T poly = T(0);  // atanh(s)/s = 1 + s²/3 + s⁴/5 + …
#pragma GCC unroll 16
  for (int k = R::log_terms; k >= 0; --k) poly = poly * s2 + T(1.0 / (2 * k + 1));
  T lost = x - (t - T(1));  // the rounding of 1 + x, to first order
  return T(n) * T(0.69314718055994530942) + (T(2) * s * poly + lost * inverse);
}

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

XENT_INLINE double load(double x) { return x; }
XENT_INLINE float load(float x) { return x; }
XENT_INLINE float load(BFloat x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
XENT_INLINE float load(Half x) {
  const uint32_t bits = (uint32_t(int32_t(int16_t(x.bits))) << 13) & 0x8fffe000u;
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(bits) * bit_cast<float>(0x77800000u));  // 2^112
  return bit_cast<float>(finite | ((bits & 0x0f800000u) == 0x0f800000u ? 0x7f800000u : 0u));
}

template <class S>
XENT_INLINE S store(typename ComputeOf<S>::type x) {
  return x;
}
template <>
XENT_INLINE BFloat store<BFloat>(float x) {  // to nearest, ties to even
  uint32_t bits = bit_cast<uint32_t>(x);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {uint16_t(x != x ? 0x7fc0u : rounded)};
}
template <>
XENT_INLINE Half store<Half>(float x) {  // to nearest, by adding 2^13 times a power of two no larger than |x|
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  uint32_t power = magnitude & 0x7f800000u;
  power = power < 0x38800000u ? 0x38800000u : power;  // 2^-14, the smallest normal number
  power = power > 0x47800000u ? 0x47800000u : power;  // 2^16, above the largest finite half
  const float sum = bit_cast<float>(magnitude) + bit_cast<float>(power + 0x06800000u);
  const uint32_t rounded = bit_cast<uint32_t>(sum) - power + (power >> 13) - 0x0681c400u;
  const int32_t special = int32_t(magnitude >> 13) - 0x38000;  // the bits of infinity and NaN
  const uint32_t limit = uint32_t(special > 0x7c00 ? special : 0x7c00);
  return {uint16_t((rounded < limit ? rounded : limit) | ((bits >> 16) & 0x8000u))};
}

template <class T>
constexpr T nan_() {
  return std::numeric_limits<T>::quiet_NaN();
}
template <class T>
constexpr T lowest_() {
  return std::numeric_limits<T>::lowest();
}

// The link u = φ(z) with its derivatives, which need only u. In units in which the softmax is of
// `scale`·w: w = z and scale = 1/T without a cap, w = C·tanh(z/(TC)) and scale = 1 with one. In loops CAP is
// a compile-time constant equal to `capped`.
template <class T>
struct Link {
  bool capped;
  T scale, exponent, least, slope_at_0, cap, inner, inv_cap;

  Link(double inv_temperature, double softcap)
      : capped(softcap != 0),
        scale(capped ? T(1) : T(inv_temperature)),
        exponent(T(log2_e * (capped ? 1.0 : inv_temperature))),
        least(T(Real<T>::least_exponent / (log2_e * (capped ? 1.0 : inv_temperature)))),
        slope_at_0(T(inv_temperature)),
        cap(T(softcap)),
        inner(T(inv_temperature / (capped ? softcap : 1.0))),
        inv_cap(T(1.0 / (capped ? softcap : 1.0))) {}

  XENT_INLINE T exp_scaled(T d) const { return exp2_(d, exponent, least); }  // e^(scale·d)
  template <bool CAP>
  XENT_INLINE T value(T z) const {
    if constexpr (!CAP) return z;
    T capped_z = cap * tanh_(z * inner);
    return choose((z - z) == T(0), capped_z, z);  // infinities and NaN are unchanged
  }
  XENT_INLINE T ratio(T w) const {  // tanh, kept in [−1, 1] where w is infinite
    T t = w * inv_cap;
    t = t > T(1) ? T(1) : t;
    return t < T(-1) ? T(-1) : t;
  }
  template <bool CAP>
  XENT_INLINE T slope(T w) const {
    if constexpr (!CAP) return slope_at_0;
    T t = ratio(w);
    return slope_at_0 * (T(1) - t * t);
  }
  template <bool CAP>
  XENT_INLINE T curvature(T w) const {
    if constexpr (!CAP) return T(0);
    T t = ratio(w);
    return T(-2) * t * (T(1) - t * t) * slope_at_0 * inner;
  }
  // For single classes, outside of loops.
  T value(T z) const { return capped ? value<true>(z) : z; }
  T slope(T w) const { return capped ? slope<true>(w) : slope_at_0; }
  T curvature(T w) const { return capped ? curvature<true>(w) : T(0); }
};

}  // namespace XENT_ISA
}  // namespace xent
