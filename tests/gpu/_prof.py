import time, statistics, torch, sys, os
sys.path.insert(0,"tests/gpu")
from cases import *
from bsgen.runtime import driver, launch
mm=compile_case(Case("random10",32,"float16"))
x=normal(16,mm.in_features,dtype="float16"); w=normal(*mm.weight_shape,dtype="float16"); dy=normal(16,mm.out_features,dtype="float16")
for _ in range(3): mm(x,w); mm.dgrad(dy,w); mm.wgrad(x,dy)
op=mm.operation("fprop")
def t(f,k=500):
    r=[]
    for _ in range(9):
        torch.cuda.synchronize(); a=time.perf_counter_ns()
        for _ in range(k): f()
        r.append((time.perf_counter_ns()-a)/k)
    return round(statistics.median(r)/1000,2)
y=mm(x,w); P=__import__("bsgen.runtime.arrays",fromlist=["x"]).framework_of(x,"x")
ops={"x":x.data_ptr(),"w":w.data_ptr(),"out":y.data_ptr(),"n":16,"accumulate":0}
from cuda.bindings import driver as cu
print("nothing",t(lambda:None)); print("mm",t(lambda:mm(x,w))); print("dgrad",t(lambda:mm.dgrad(dy,w))); print("wgrad",t(lambda:mm.wgrad(x,dy))); print("mm out",t(lambda:mm(x,w,out=y)))
E=op._express; A={"x":x,"w":w}
print("op",t(lambda:op(A)),"express",t(lambda:E(A)),"addresses",t(lambda:E._addresses(A,[16],0)))
print("look",t(lambda:op._look(A))); print("view",t(lambda:P.view(x,"x")))
print("kernels",t(lambda:op.kernels(0,0,ops))); print("enter",t(lambda:driver.enter(0))); print("ctxget",t(lambda:cu.cuCtxGetCurrent()))
k=op.kernels._loaded[0][0]; a=launch._arguments.address
print("one",t(lambda:k(0,ops)))
print("cuLaunch",t(lambda:cu.cuLaunchKernel(k.function,1,1,1,k.threads,1,1,k.shared_memory,0,a,0)))
s=cu.CUstream(0)
print("cuLaunch strm",t(lambda:cu.cuLaunchKernel(k.function,1,1,1,k.threads,1,1,k.shared_memory,s,a,0)))
import ctypes; L=ctypes.CDLL("libcuda.so.1").cuLaunchKernel; L.argtypes=[ctypes.c_void_p]+[ctypes.c_uint]*7+[ctypes.c_void_p]*3
h=int(k.function); g=k.shared_memory; th=k.threads
print("ctypes",t(lambda:L(h,1,1,1,th,1,1,g,0,a,0)))
print("torch.mm",t(lambda:torch.mm(x,x.T)),"x+x",t(lambda:x+x)); d=x.device; sh=tuple(y.shape)
print("torch.empty dev",t(lambda:torch.empty(sh,dtype=torch.float16,device=d))); print("new_empty",t(lambda:x.new_empty(sh)),"empty_like",t(lambda:torch.empty_like(x)))
print("shape",t(lambda:x.shape),"dtype",t(lambda:x.dtype),"data_ptr",t(lambda:x.data_ptr()),"is_cuda",t(lambda:x.is_cuda),"get_device",t(lambda:x.get_device()),"contig",t(lambda:x.is_contiguous()),"cmp",t(lambda:x.shape!=sh))
try:
    f=torch._C._dynamo.guards._empty_strided_cuda; st=tuple(y.stride()); print("_empty_strided_cuda",t(lambda:f(sh,st,torch.float16)))
except Exception as error: print(error)
print("raw stream",t(lambda:torch._C._cuda_getCurrentRawStream(0)),"getDevice",t(lambda:torch._C._cuda_getDevice()), "pylist", t(lambda:[1,2,3]), "dict", t(lambda:{"a":1,"b":2}))
r=[]
for _ in range(300): x.new_empty(sh)
torch.cuda.synchronize()
for _ in range(300):
    a_=time.perf_counter_ns(); mm(x,w); r.append(time.perf_counter_ns()-a_)
r.sort(); print("mm quantiles us", [r[i]/1000 for i in (3,30,150,270,297)])
torch.cuda.synchronize()
g=torch.cuda.CUDAGraph()
with torch.cuda.graph(g):
    for _ in range(100): mm(x,w,out=y)
e=[torch.cuda.Event(enable_timing=True) for _ in range(2)]; g.replay(); e[0].record(); g.replay(); e[1].record(); torch.cuda.synchronize(); print("gpu us",e[0].elapsed_time(e[1])*10)
