// GCC's library of C++ reads this variable of glibc 2.32 and later. 0 says that there may be other threads, which an
// extension of Python cannot exclude; the wheel then needs no such glibc.
const char __libc_single_threaded = 0;
