/*
 * floor: the least that a container costs on this kernel.
 *
 * Makes the kernel calls of one container plan, and no others, from a small static program: what `scripts/bench`
 * compares crishim's engine with. The calls are not chosen here: scripts/benchlib/floor_ops.py writes them from the
 * real plan, one a line, so the floor cannot drift from what the engine does.
 *
 * usage: floor [--loop N] [--pause MS] FILE
 *
 * Prints one line per turn: nanoseconds from before the first call of [make] to after the last call of [delete].
 * --loop 0 only reads FILE (strace -c of it is the program's own cost).
 *
 * FILE: lines of fields parted by tabs; %XX stands for a byte; `#` begins a comment. Three sections:
 *   [make]    calls of the parent before the child exists
 *   [child]   calls of the child; the last is `execve`
 *   [delete]  calls of the parent after the child has been waited for
 * `clone3 FLAGS [CGROUP]` (last in [make]) makes the child; with a CGROUP (v2) the child is born in it. A field `=name`
 * is a file descriptor kept under that name by an earlier call. An optional call (`?` before its name) may fail.
 *
 * Out of scope: looking names up, choosing, reporting to a client, logs. Every failed call ends the program with the
 * line, the call and errno.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FIELDS 24
#define OPS 1024
#define SLOTS 64

struct op {
    int line;
    int optional;
    int count;              /* fields after the name */
    size_t size[FIELDS];
    char *field[FIELDS];
    char *name;
    int (*call)(struct op *);
};

struct section {
    struct op *ops[OPS];
    int count;
};

static struct { char *name; int fd; } slots[SLOTS];
static const char *source;

static void die(const struct op *op, const char *what)
{
    dprintf(2, "%s:%d: %s: %s\n", source, op ? op->line : 0, what, strerror(errno));
    _exit(125);
}

static void refuse(int line, const char *what)
{
    dprintf(2, "%s:%d: %s\n", source, line, what);
    _exit(2);
}

/* ---- fields ------------------------------------------------------------------------------------------------ */

static char *text(struct op *op, int n)
{
    if (n >= op->count)
        refuse(op->line, "too few fields");
    return op->field[n];
}

static char *text_or_null(struct op *op, int n)
{
    char *value = text(op, n);
    return *value ? value : NULL;
}

static unsigned long number(struct op *op, int n)
{
    char *end, *value = text(op, n);
    unsigned long result = strtoul(value, &end, 0);
    if (end == value || *end)
        refuse(op->line, "not a number");
    return result;
}

static int *slot(const char *name)
{
    int i;
    for (i = 0; i < SLOTS && slots[i].name; i++)
        if (!strcmp(slots[i].name, name))
            return &slots[i].fd;
    if (i == SLOTS)
        refuse(0, "too many descriptors");
    slots[i].name = strdup(name);
    return &slots[i].fd;
}

/* `=name` is a kept descriptor, `cwd` is AT_FDCWD, a number is itself. */
static int descriptor(struct op *op, int n)
{
    char *value = text(op, n);
    if (*value == '=')
        return *slot(value + 1);
    return strcmp(value, "cwd") ? (int)number(op, n) : AT_FDCWD;
}

static int keep(struct op *op, int n, long fd)
{
    if (fd < 0)
        return -1;
    if (*text(op, n) != '=')
        refuse(op->line, "a name for the descriptor is missing");
    *slot(op->field[n] + 1) = (int)fd;
    return 0;
}

/* ---- files and directories ------------------------------------------------------------------------------------ */

static int op_mkdir(struct op *op) { return mkdir(text(op, 0), number(op, 1)); }
static int op_mkdirat(struct op *op) { return mkdirat(descriptor(op, 0), text(op, 1), number(op, 2)); }
static int op_rmdir(struct op *op) { return rmdir(text(op, 0)); }
static int op_symlink(struct op *op) { return symlink(text(op, 0), text(op, 1)); }
static int op_symlinkat(struct op *op) { return symlinkat(text(op, 0), descriptor(op, 1), text(op, 2)); }
static int op_umask(struct op *op) { umask(number(op, 0)); return 0; }
static int op_chdir(struct op *op) { return chdir(text(op, 0)); }
static int op_fchdir(struct op *op) { return fchdir(descriptor(op, 0)); }
static int op_close(struct op *op) { return close(descriptor(op, 0)); }

static int op_mknodat(struct op *op)
{
    return mknodat(descriptor(op, 0), text(op, 1), number(op, 2), makedev(number(op, 3), number(op, 4)));
}

static int op_openat(struct op *op)
{
    return keep(op, 3, openat(descriptor(op, 0), text(op, 1), number(op, 2) | O_CLOEXEC, 0644));
}

static int op_openat2(struct op *op)
{
    struct { uint64_t flags, mode, resolve; } how = {number(op, 2) | O_CLOEXEC, 0, number(op, 3)};
    if (how.flags & O_CREAT)
        how.mode = 0644;
    return keep(op, 4, syscall(SYS_openat2, descriptor(op, 0), text(op, 1), &how, sizeof how));
}

/* openat, write, close: how a value gets into /proc and into a cgroup's file. */
static int op_write(struct op *op)
{
    int fd = open(text(op, 0), O_WRONLY | O_CLOEXEC), saved;
    ssize_t done;
    if (fd < 0)
        return -1;
    done = write(fd, text(op, 1), op->size[1]);
    saved = errno;
    close(fd);
    errno = saved;
    return done == (ssize_t)op->size[1] ? 0 : -1;
}

static int empty_below(int parent, const char *name)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), failed = 0;
    struct dirent *entry;
    DIR *directory;
    if (fd < 0 || !(directory = fdopendir(fd)))
        return -1;
    while (!failed && (entry = readdir(directory))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        failed = entry->d_type == DT_DIR ? empty_below(dirfd(directory), entry->d_name)
                                         : unlinkat(dirfd(directory), entry->d_name, 0);
    }
    closedir(directory);
    return failed ? -1 : unlinkat(parent, name, AT_REMOVEDIR);
}

static int op_rmtree(struct op *op) { return empty_below(AT_FDCWD, text(op, 0)); }

/* ---- mounts ------------------------------------------------------------------------------------------------- */

static int op_mount(struct op *op)
{
    return mount(text_or_null(op, 0), text(op, 1), text_or_null(op, 2), number(op, 3), text_or_null(op, 4));
}

static int op_umount2(struct op *op) { return umount2(text(op, 0), number(op, 1)); }
static int op_pivot_root(struct op *op) { return syscall(SYS_pivot_root, text(op, 0), text(op, 1)); }

static int op_fsopen(struct op *op)
{
    return keep(op, 2, syscall(SYS_fsopen, text(op, 0), number(op, 1)));
}

/* fsconfig FD COMMAND KEY VALUE AUX */
static int op_fsconfig(struct op *op)
{
    return syscall(SYS_fsconfig, descriptor(op, 0), number(op, 1), text_or_null(op, 2), text_or_null(op, 3),
                   descriptor(op, 4));
}

static int op_fsmount(struct op *op)
{
    return keep(op, 3, syscall(SYS_fsmount, descriptor(op, 0), number(op, 1), number(op, 2)));
}

static int op_open_tree(struct op *op)
{
    return keep(op, 3, syscall(SYS_open_tree, descriptor(op, 0), text(op, 1), number(op, 2)));
}

static int op_move_mount(struct op *op)
{
    return syscall(SYS_move_mount, descriptor(op, 0), text(op, 1), descriptor(op, 2), text(op, 3), number(op, 4));
}

/* mount_setattr FD PATH FLAGS SET CLEAR PROPAGATION */
static int op_mount_setattr(struct op *op)
{
    struct { uint64_t set, clear, propagation, userns; } attr = {number(op, 3), number(op, 4), number(op, 5), 0};
    return syscall(SYS_mount_setattr, descriptor(op, 0), text(op, 1), number(op, 2), &attr, sizeof attr);
}

/* ---- the process ------------------------------------------------------------------------------------------------ */

static int op_unshare(struct op *op) { return unshare(number(op, 0)); }
static int op_sethostname(struct op *op) { return sethostname(text(op, 0), op->size[0]); }
static int op_setsid(struct op *op) { (void)op; return setsid() < 0 ? -1 : 0; }
static int op_setresgid(struct op *op) { return syscall(SYS_setresgid, number(op, 0), number(op, 1), number(op, 2)); }
static int op_setresuid(struct op *op) { return syscall(SYS_setresuid, number(op, 0), number(op, 1), number(op, 2)); }
static int op_keyctl(struct op *op) { return syscall(SYS_keyctl, number(op, 0), text_or_null(op, 1), 0, 0, 0) < 0; }
static int op_dup3(struct op *op) { return dup3(descriptor(op, 0), number(op, 1), number(op, 2)) < 0 ? -1 : 0; }

static int op_close_range(struct op *op)
{
    return syscall(SYS_close_range, number(op, 0), number(op, 1), number(op, 2));
}

static int op_prctl(struct op *op)
{
    return prctl(number(op, 0), number(op, 1), number(op, 2), number(op, 3), number(op, 4)) < 0 ? -1 : 0;
}

static int op_prlimit64(struct op *op)
{
    struct rlimit limit = {number(op, 1), number(op, 2)};
    return prlimit(0, number(op, 0), &limit, NULL);
}

static int op_setgroups(struct op *op)
{
    gid_t groups[FIELDS];
    for (int i = 0; i < op->count; i++)
        groups[i] = number(op, i);
    return syscall(SYS_setgroups, (size_t)op->count, groups);
}

/* capset EFFECTIVE PERMITTED INHERITABLE, each a mask of 64 bits */
static int op_capset(struct op *op)
{
    struct { uint32_t version; int pid; } header = {0x20080522, 0};
    uint64_t e = number(op, 0), p = number(op, 1), i = number(op, 2);
    uint32_t data[6] = {e, p, i, e >> 32, p >> 32, i >> 32};
    return syscall(SYS_capset, &header, data);
}

/* seccomp FLAGS PROGRAM: the program's bytes are the field itself */
static int op_seccomp(struct op *op)
{
    struct { unsigned short length; void *filter; } program = {op->size[1] / 8, text(op, 1)};
    return syscall(SYS_seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, number(op, 0), &program);
}

/* execve PATH ARGC ARG... ENV... */
static int op_execve(struct op *op)
{
    char *argv[FIELDS] = {0}, *envp[FIELDS] = {0};
    int argc = number(op, 1);
    for (int i = 0; i < argc; i++)
        argv[i] = text(op, 2 + i);
    for (int i = 2 + argc; i < op->count; i++)
        envp[i - 2 - argc] = op->field[i];
    return execve(text(op, 0), argv, envp);
}

static int op_clone3(struct op *op) { (void)op; return 0; }

static const struct { const char *name; int (*call)(struct op *); } table[] = {
#define ENTRY(name) {#name, op_##name}
    ENTRY(mkdir), ENTRY(mkdirat), ENTRY(rmdir), ENTRY(symlink), ENTRY(symlinkat), ENTRY(umask), ENTRY(chdir),
    ENTRY(fchdir), ENTRY(close), ENTRY(mknodat), ENTRY(openat), ENTRY(openat2), ENTRY(write), ENTRY(rmtree),
    ENTRY(mount), ENTRY(umount2), ENTRY(pivot_root), ENTRY(fsopen), ENTRY(fsconfig), ENTRY(fsmount), ENTRY(open_tree),
    ENTRY(move_mount), ENTRY(mount_setattr), ENTRY(unshare), ENTRY(sethostname), ENTRY(setsid), ENTRY(setresgid),
    ENTRY(setresuid), ENTRY(keyctl), ENTRY(dup3), ENTRY(close_range), ENTRY(prctl), ENTRY(prlimit64),
    ENTRY(setgroups), ENTRY(capset), ENTRY(seccomp), ENTRY(execve), ENTRY(clone3),
};

/* ---- reading the file -------------------------------------------------------------------------------------------- */

static int hex(int c) { return c <= '9' ? c - '0' : (c | 32) - 'a' + 10; }

static size_t decode(char *field)
{
    char *out = field;
    for (char *in = field; *in; in++) {
        if (*in == '%' && in[1] && in[2]) {
            *out++ = (char)(hex(in[1]) << 4 | hex(in[2]));
            in += 2;
        } else {
            *out++ = *in;
        }
    }
    *out = 0;
    return (size_t)(out - field);
}

static struct op *parse(char *line, int at)
{
    struct op *op = calloc(1, sizeof *op);
    char *part;
    op->line = at;
    op->name = strsep(&line, "\t");
    if (*op->name == '?') {
        op->optional = 1;
        op->name++;
    }
    while ((part = strsep(&line, "\t"))) {
        if (op->count == FIELDS - 2)
            refuse(at, "too many fields");
        op->size[op->count] = decode(part);
        op->field[op->count++] = part;
    }
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, op->name))
            op->call = table[i].call;
    if (!op->call)
        refuse(at, "unknown call");
    return op;
}

static void load(struct section *make, struct section *child, struct section *delete)
{
    FILE *file = fopen(source, "re");
    struct section *current = NULL;
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    int at = 0;
    if (!file)
        die(NULL, "open");
    while ((length = getline(&line, &room, file)) > 0) {
        at++;
        if (line[length - 1] == '\n')
            line[length - 1] = 0;
        if (!*line || *line == '#')
            continue;
        if (*line == '[') {
            current = !strcmp(line, "[make]") ? make : !strcmp(line, "[child]") ? child : delete;
            continue;
        }
        if (!current || current->count == OPS)
            refuse(at, "no section, or too many calls");
        current->ops[current->count++] = parse(strdup(line), at);
    }
    free(line);
    fclose(file);
    if (!make->count || strcmp(make->ops[make->count - 1]->name, "clone3"))
        refuse(at, "[make] must end with clone3");
    if (!child->count || strcmp(child->ops[child->count - 1]->name, "execve"))
        refuse(at, "[child] must end with execve");
}

/* ---- one turn ------------------------------------------------------------------------------------------------------- */

static void run(struct section *section)
{
    for (int i = 0; i < section->count; i++) {
        struct op *op = section->ops[i];
        if (op->call(op) && !op->optional)
            die(op, op->name);
    }
}

static pid_t born(struct op *op)
{
    struct clone_args args = {.flags = number(op, 0), .exit_signal = SIGCHLD};
    int group = -1;
    long pid;
    if (op->count > 1 && *text(op, 1)) {
        group = open(op->field[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (group < 0)
            die(op, op->field[1]);
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)group;
    }
    pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0)
        die(op, "clone3");
    if (pid && group >= 0)
        close(group);
    return (pid_t)pid;
}

static long long turn(struct section *make, struct section *child, struct section *delete)
{
    struct timespec before, after;
    int status;
    pid_t pid;
    clock_gettime(CLOCK_MONOTONIC, &before);
    run(make);
    pid = born(make->ops[make->count - 1]);
    if (!pid) {
        run(child);
        _exit(125);
    }
    if (waitpid(pid, &status, 0) != pid)
        die(NULL, "waitpid");
    run(delete);
    clock_gettime(CLOCK_MONOTONIC, &after);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        dprintf(2, "%s: the child ended with status 0x%x\n", source, status);
        _exit(WIFEXITED(status) && WEXITSTATUS(status) == 125 ? 125 : 1);
    }
    return (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
}

int main(int argc, char **argv)
{
    static struct section make, child, delete;
    long loop = 1, pause = 0;
    int i = 1;
    for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        if (!strcmp(argv[i], "--loop"))
            loop = atol(argv[i + 1]);
        else if (!strcmp(argv[i], "--pause"))
            pause = atol(argv[i + 1]);
        else
            break;
    }
    if (i != argc - 1) {
        dprintf(2, "usage: floor [--loop N] [--pause MS] FILE\n");
        return 2;
    }
    source = argv[i];
    load(&make, &child, &delete);
    while (loop-- > 0) {
        struct timespec rest = {pause / 1000, pause % 1000 * 1000000};
        if (pause)
            nanosleep(&rest, NULL);
        dprintf(1, "%lld\n", turn(&make, &child, &delete));
    }
    return 0;
}
