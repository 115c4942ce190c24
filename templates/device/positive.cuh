// max(v, 0), but NaN stays NaN (PTX: max.NaN, sm_80).
__device__ __forceinline__ float positive(float v) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(v), "f"(0.0f));
    return larger;
}
