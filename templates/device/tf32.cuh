// Round to TF32 (to nearest, ties away from zero); the tensor core alone would cut the bits off.
__device__ __forceinline__ u32 tf32(u32 bits) {
    u32 rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
}
