// Fibers: stacks that are switched by hand. On x86-64 a switch is a dozen
// instructions, the last a jump: processors foresee where a return goes from the
// calls before it, which were of another stack. Elsewhere the C library does it.
#pragma once
#include <cstddef>

#if defined(__x86_64__)

extern "C" void asaSwitch(void **from, void *to);
asm(R"(
.text
.globl asaSwitch
.hidden asaSwitch
.type asaSwitch, @function
asaSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size asaSwitch, .-asaSwitch
)");

class Fiber {
public:
  void start(char *stack, size_t bytes, void (*body)()) {
    void **top = (void **)(stack + bytes);
    *--top = nullptr; // where `body` would return to
    *--top = (void *)body;
    for (int n = 0; n < 6; n++) *--top = nullptr;
    place = top;
  }
  static void change(Fiber &from, Fiber &to) { asaSwitch(&from.place, to.place); }

private:
  void *place = nullptr;
};

#else
#include <ucontext.h>

class Fiber {
public:
  void start(char *stack, size_t bytes, void (*body)()) {
    getcontext(&place);
    place.uc_stack.ss_sp = stack;
    place.uc_stack.ss_size = bytes;
    place.uc_link = nullptr;
    makecontext(&place, body, 0);
  }
  static void change(Fiber &from, Fiber &to) {
    swapcontext(&from.place, &to.place);
  }

private:
  ucontext_t place;
};

#endif
