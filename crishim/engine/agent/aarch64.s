// The agent for arm64. It holds and never thinks: it waits for a doorbell, runs the calls in its area, answers.
//
// `layout.py` says what stands where in the area and in a call's record; the .set lines below repeat its numbers, and a
// unit test compares them and the bytes in `elf.py` with this text. x86_64.s is the same program, line by line.
//
// Not one word is ever pushed: everything is in registers and in the area.
//   x19 the record of the call that runs
//   x20 0: an agent, 1: a child on its way to execve
//   x21 the area (an agent's own memory is the area alone)
//   w22 the record's control word
//   x23 where a new process goes on

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
    .set EXPECT_BIT, 12
    .set ELSE_BIT, 13
    .set OK_BIT, 14
    .set CHILD_BIT, 15

    .set SYS_close, 57
    .set SYS_write, 64
    .set SYS_ppoll, 73
    .set SYS_exit_group, 94
    .set SYS_rt_sigaction, 134
    .set SYS_prctl, 167
    .set SYS_sendmsg, 211
    .set SYS_recvmsg, 212
    .set SYS_mmap, 222
    .set SYS_madvise, 233

    .globl _start
_start:
    mov     x8, SYS_prctl               // PR_SET_NAME: what ps shows
    mov     x0, 15
    adr     x1, name
    svc     0
    ldr     x0, [sp]                    // argc: one more word, and this is process 1 of a shared PID namespace
    cmp     x0, 1
    b.hi    reaper
    mov     x21, AREA
    mov     x8, SYS_mmap
    mov     x0, x21
    mov     x1, AREA_SIZE
    mov     x2, 3                       // PROT_READ | PROT_WRITE
    mov     x3, 0x100000
    orr     x3, x3, 1                   // MAP_SHARED | MAP_FIXED_NOREPLACE
    mov     x4, AREA_FD
    mov     x5, 0
    svc     0
    cmp     x0, x21
    b.ne    leave
    mov     x8, SYS_madvise             // MADV_DONTFORK: no child ever has the area
    mov     x0, x21
    mov     x1, AREA_SIZE
    mov     x2, 10
    svc     0
    cbnz    x0, leave
    mov     x8, SYS_close
    mov     x0, AREA_FD
    svc     0
    mov     x20, 0

// ---- the loop of an agent -------------------------------------------------------------------------------------------

    b       wait
sent:
    ldr     x9, [x21, DONE]
    str     x9, [x21, ANSWERED]         // answered, or not to be answered
wait:
    mov     w9, NAME_SIZE               // both are value-result
    str     w9, [x21, RECEIVE_NAMELEN]
    mov     x9, CONTROL_SIZE
    str     x9, [x21, RECEIVE_CONTROLLEN]
    mov     x8, SYS_recvmsg
    mov     x0, SOCKET
    add     x1, x21, RECEIVE
    mov     x2, 0x40000000              // MSG_CMSG_CLOEXEC
    svc     0
    cmn     x0, 4                       // EINTR: stopped and continued
    b.eq    wait
    tbnz    x0, 63, leave
    ldr     x9, [x21, RUNG]             // runs only the batch that was asked for, and only once
    ldr     x10, [x21, ASKED]
    cmp     x9, x10
    b.ne    answer
    ldr     x10, [x21, DONE]
    cmp     x9, x10
    b.eq    answer
    str     xzr, [x21, FAILED]
    add     x19, x21, FIRST
    b       run
done:
    ldr     x9, [x21, RUNG]
    str     x9, [x21, DONE]
answer:
    ldr     w9, [x21, RECEIVE_NAMELEN]  // to whom rang
    str     w9, [x21, ANSWER_NAMELEN]
    mov     x8, SYS_sendmsg
    mov     x0, SOCKET
    add     x1, x21, ANSWER
    mov     x2, 0x4040                  // MSG_DONTWAIT | MSG_NOSIGNAL: nobody holds an agent up
    svc     0
    tbz     x0, 63, sent                // from here on the keeper may write the next one
    ldr     x9, [x21, ANSWER_CONTROLLEN]
    str     xzr, [x21, ANSWER_CONTROLLEN]
    cbnz    x9, answer                  // again without descriptors; then the area's own numbers must do
    b       sent

// ---- a batch ----------------------------------------------------------------------------------------------------------

    .macro argument number
    ldr     x\number, [x19, ARGUMENTS + 8 * \number]
    tbz     w22, 2 * \number, 1f
    ldr     x\number, [x\number]        // a word at this address
1:  tbz     w22, 2 * \number + 1, 2f
    ldr     w\number, [x\number]        // half a word: a descriptor, a mode
2:
    .endm

next:
    add     x19, x19, RECORD
run:
    ldr     w22, [x19, CONTROL]
    ldr     w8, [x19]
    cmn     w8, 1
    b.eq    end
    argument 0
    argument 1
    argument 2
    argument 3
    argument 4
    argument 5
    ldr     x23, [x19, OTHER]
    svc     0
    cbnz    x0, 1f
    tbz     w22, CHILD_BIT, 1f
    mov     x20, 1                      // a child: it has no area, and goes on with calls of its own
    mov     x19, x23
    b       run
1:  str     x0, [x19, RESULT]
    cmn     x0, 4095
    b.hs    error
    tbz     w22, EXPECT_BIT, succeeded
    ldr     x9, [x19, ADDRESS]
    ldr     x9, [x9]
    ldr     x10, [x19, MASK]
    and     x9, x9, x10
    ldr     x10, [x19, VALUE]
    cmp     x9, x10
    b.eq    succeeded
    tbnz    w22, ELSE_BIT, other
    b       fail
succeeded:
    tbz     w22, OK_BIT, next
other:
    ldr     x19, [x19, OTHER]           // read only now: a keeper may have changed it while a child waited
    b       run
error:
    neg     w9, w0
    ldrh    w10, [x19, ERRNOS]
    cmp     w9, w10
    b.eq    allowed
    ldrh    w10, [x19, ERRNOS + 2]
    cmp     w9, w10
    b.eq    allowed
    ldrh    w10, [x19, ERRNOS + 4]
    cmp     w9, w10
    b.eq    allowed
    ldrh    w10, [x19, ERRNOS + 6]
    cmp     w9, w10
    b.ne    fail
allowed:
    tbnz    w22, OK_BIT, next
    tbnz    w22, CHILD_BIT, next
    b       other

end:
    cbz     x20, done
    tbz     w22, CHILD_BIT, report      // this child was made to be an agent itself
    mov     x20, 0
    mov     x21, AREA
    b       wait
fail:
    cbnz    x20, report
    str     x19, [x21, FAILED]
    b       done
report:
    mov     x8, SYS_write               // the record itself says which call it was, and its result
    mov     x0, SOCKET
    mov     x1, x19
    mov     x2, RECORD
    svc     0
leave:
    mov     x8, SYS_exit_group
    mov     x0, 127
    svc     0
    brk     0                           // a filter may refuse even that

// ---- process 1 of a shared PID namespace ------------------------------------------------------------------------------

reaper:
    mov     x8, SYS_rt_sigaction        // SIGCHLD ignored: the kernel reaps (wait(2), NOTES)
    mov     x0, 17
    adr     x1, ignore
    mov     x2, 0
    mov     x3, 8
    svc     0
sleep:
    mov     x8, SYS_ppoll
    mov     x0, 0
    mov     x1, 0
    mov     x2, 0
    mov     x3, 0
    mov     x4, 0
    svc     0
    b       sleep

name:
    .asciz  "crishim-agent"
    .balign 8
ignore:
    .quad   1, 0, 0, 0                  // SIG_IGN
