// Programmatic dependent launch (PTX: griddepcontrol). The kernel ahead in the stream may still run, until which has ended nothing may be
// read or written that is not this kernel's own; and the one behind may be set up from here on.
__device__ __forceinline__ void wait_for_kernel_ahead() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_kernel_behind_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
