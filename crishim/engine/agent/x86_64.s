# The agent for x86-64. It holds and never thinks: it waits for a doorbell, runs the calls in its area, answers.
#
# `layout.py` says what stands where in the area and in a call's record; the .set lines below repeat its numbers, and a
# unit test compares them and the bytes in `elf.py` with this text. aarch64.s is the same program, line by line.
#
# Not one word is ever pushed: everything is in registers and in the area.
#   rbx  the record of the call that runs
#   r12  the area (an agent's own memory is the area alone)
#   ebp  0: an agent, 1: a child on its way to execve
#   r13d the record's control word
#   r14  where a new process goes on
    .intel_syntax noprefix

    .set AREA, 0x500000
    .set AREA_SIZE, 0x2000
    .set ASKED, 0x08
    .set DONE, 0x10
    .set FAILED, 0x18
    .set RUNG, 0x20
    .set ANSWERED, 0x28
    .set RECEIVE, 0x30
    .set RECEIVE_NAMELEN, 0x38
    .set RECEIVE_CONTROLLEN, 0x58
    .set ANSWER, 0x68
    .set ANSWER_NAMELEN, 0x70
    .set ANSWER_CONTROLLEN, 0x90
    .set FIRST, 0x960
    .set NAME_SIZE, 110
    .set CONTROL_SIZE, 1032
    .set SOCKET, 3
    .set AREA_FD, 4

    .set RECORD, 104
    .set CONTROL, 4
    .set ARGUMENTS, 8
    .set RESULT, 56
    .set ERRNOS, 64
    .set OTHER, 72
    .set ADDRESS, 80
    .set MASK, 88
    .set VALUE, 96
    .set EXPECT, 0x1000
    .set ELSE, 0x2000
    .set OK, 0x4000
    .set CHILD, 0x8000

    .set SYS_write, 1
    .set SYS_close, 3
    .set SYS_mmap, 9
    .set SYS_rt_sigaction, 13
    .set SYS_madvise, 28
    .set SYS_sendmsg, 46
    .set SYS_recvmsg, 47
    .set SYS_prctl, 157
    .set SYS_exit_group, 231
    .set SYS_ppoll, 271

    .globl _start
_start:
    mov     eax, SYS_prctl              # PR_SET_NAME: what ps shows
    mov     edi, 15
    lea     rsi, [rip + name]
    syscall
    cmp     qword ptr [rsp], 1          # argc: one more word, and this is process 1 of a shared PID namespace
    ja      reaper
    mov     r12, AREA
    mov     eax, SYS_mmap
    mov     rdi, r12
    mov     esi, AREA_SIZE
    mov     edx, 3                      # PROT_READ | PROT_WRITE
    mov     r10d, 0x100001              # MAP_SHARED | MAP_FIXED_NOREPLACE
    mov     r8d, AREA_FD
    xor     r9d, r9d
    syscall
    cmp     rax, r12
    jne     leave
    mov     eax, SYS_madvise            # MADV_DONTFORK: no child ever has the area
    mov     rdi, r12
    mov     esi, AREA_SIZE
    mov     edx, 10
    syscall
    test    rax, rax
    jnz     leave
    mov     eax, SYS_close
    mov     edi, AREA_FD
    syscall
    xor     ebp, ebp

# ---- the loop of an agent -------------------------------------------------------------------------------------------

    jmp     wait
sent:
    mov     rax, [r12 + DONE]
    mov     [r12 + ANSWERED], rax       # answered, or not to be answered
wait:
    mov     dword ptr [r12 + RECEIVE_NAMELEN], NAME_SIZE        # both are value-result
    mov     qword ptr [r12 + RECEIVE_CONTROLLEN], CONTROL_SIZE
    mov     eax, SYS_recvmsg
    mov     edi, SOCKET
    lea     rsi, [r12 + RECEIVE]
    mov     edx, 0x40000000             # MSG_CMSG_CLOEXEC
    syscall
    cmp     rax, -4                     # EINTR: stopped and continued
    je      wait
    test    rax, rax
    js      leave
    mov     rax, [r12 + RUNG]           # runs only the batch that was asked for, and only once
    cmp     rax, [r12 + ASKED]
    jne     answer
    cmp     rax, [r12 + DONE]
    je      answer
    xor     eax, eax
    mov     [r12 + FAILED], rax
    lea     rbx, [r12 + FIRST]
    jmp     run
done:
    mov     rax, [r12 + RUNG]
    mov     [r12 + DONE], rax
answer:
    mov     eax, [r12 + RECEIVE_NAMELEN]                        # to whom rang
    mov     [r12 + ANSWER_NAMELEN], eax
    mov     eax, SYS_sendmsg
    mov     edi, SOCKET
    lea     rsi, [r12 + ANSWER]
    mov     edx, 0x4040                 # MSG_DONTWAIT | MSG_NOSIGNAL: nobody holds an agent up
    syscall
    test    rax, rax
    jns     sent                        # from here on the keeper may write the next one
    xor     eax, eax
    xchg    rax, [r12 + ANSWER_CONTROLLEN]
    test    rax, rax
    jnz     answer                      # again without descriptors; then the area's own numbers must do
    jmp     sent

# ---- a batch ----------------------------------------------------------------------------------------------------------

    .macro argument register, low, number
    mov     \register, [rbx + ARGUMENTS + 8 * \number]
    test    r13d, 1 << (2 * \number)
    jz      1f
    mov     \register, [\register]      # a word at this address
1:  test    r13d, 2 << (2 * \number)
    jz      2f
    mov     \low, [\register]           # half a word: a descriptor, a mode
2:
    .endm

next:
    add     rbx, RECORD
run:
    mov     r13d, [rbx + CONTROL]
    cmp     dword ptr [rbx], -1
    je      end
    argument rdi, edi, 0
    argument rsi, esi, 1
    argument rdx, edx, 2
    argument r10, r10d, 3
    argument r8, r8d, 4
    argument r9, r9d, 5
    mov     r14, [rbx + OTHER]
    mov     eax, [rbx]
    syscall
    test    rax, rax
    jnz     1f
    test    r13d, CHILD
    jz      1f
    mov     ebp, 1                      # a child: it has no area, and goes on with calls of its own
    mov     rbx, r14
    jmp     run
1:  mov     [rbx + RESULT], rax
    cmp     rax, -4095
    jae     error
    test    r13d, EXPECT
    jz      succeeded
    mov     rcx, [rbx + ADDRESS]
    mov     rcx, [rcx]
    and     rcx, [rbx + MASK]
    cmp     rcx, [rbx + VALUE]
    je      succeeded
    test    r13d, ELSE
    jnz     other
    jmp     fail
succeeded:
    test    r13d, OK
    jz      next
other:
    mov     rbx, [rbx + OTHER]          # read only now: a keeper may have changed it while a child waited
    jmp     run
error:
    neg     eax
    cmp     ax, [rbx + ERRNOS]
    je      allowed
    cmp     ax, [rbx + ERRNOS + 2]
    je      allowed
    cmp     ax, [rbx + ERRNOS + 4]
    je      allowed
    cmp     ax, [rbx + ERRNOS + 6]
    jne     fail
allowed:
    test    r13d, OK | CHILD
    jnz     next
    jmp     other

end:
    test    ebp, ebp
    jz      done
    test    r13d, CHILD                 # this child was made to be an agent itself
    jz      report
    xor     ebp, ebp
    mov     r12, AREA
    jmp     wait
fail:
    test    ebp, ebp
    jnz     report
    mov     [r12 + FAILED], rbx
    jmp     done
report:
    mov     eax, SYS_write              # the record itself says which call it was, and its result
    mov     edi, SOCKET
    mov     rsi, rbx
    mov     edx, RECORD
    syscall
leave:
    mov     eax, SYS_exit_group
    mov     edi, 127
    syscall
    ud2                                 # a filter may refuse even that

# ---- process 1 of a shared PID namespace ------------------------------------------------------------------------------

reaper:
    mov     eax, SYS_rt_sigaction       # SIGCHLD ignored: the kernel reaps (wait(2), NOTES)
    mov     edi, 17
    lea     rsi, [rip + ignore]
    xor     edx, edx
    mov     r10d, 8
    syscall
sleep:
    mov     eax, SYS_ppoll
    xor     edi, edi
    xor     esi, esi
    xor     edx, edx
    xor     r10d, r10d
    xor     r8d, r8d
    syscall
    jmp     sleep

name:
    .asciz  "crishim-agent"
    .balign 8
ignore:
    .quad   1, 0, 0, 0                  # SIG_IGN
