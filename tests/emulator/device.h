// What depends on the type of a kernel's elements, of which BFLOAT16, FLOAT16 and FLOAT32 say which it is.
inline u32 pack(float low, float high) { return narrow<BFLOAT16>(low) | static_cast<u32>(narrow<BFLOAT16>(high)) << 16; }
inline float2 unpack(u32 bits) { return {wide<BFLOAT16>(bits & 0xffff), wide<BFLOAT16>(bits >> 16)}; }
inline void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const Operands mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
    if (FLOAT32) multiply_tf32(d, mine);
    else multiply_16bit<BFLOAT16>(d, mine, 2);
}
inline void mma_half(float (&d)[4], const u32 (&a)[2], u32 b) { multiply_16bit<BFLOAT16>(d, {{a[0], a[1], 0, 0}, {b, 0}}, 1); }
template <int Count>
inline void wgmma_registers(float (&sums)[Count], const u32 (&a)[4], const Matrix& b) { wgmma_registers<BFLOAT16>(sums, Count, a, b); }
template <int Count>
inline void wgmma_shared(float (&sums)[Count], const Matrix& a, const Matrix& b) { wgmma_shared<BFLOAT16>(sums, Count, a, b); }
