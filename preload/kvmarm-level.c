// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * libkvmarm-level: give a guest less than its host has.
 *
 * KVM lets user space write the registers that say what a vCPU is, and QEMU never does. Loaded into
 * QEMU with LD_PRELOAD, this library stands between the two and writes them, before QEMU reads what
 * its vCPU is. From then on QEMU saves, loads and migrates the levelled vCPU as if the host had no
 * other.
 *
 * What to write is in the environment variable KVMARM_LEVEL, which kvmarm writes into the domain:
 *
 *     1 ID=VALUE … -ID … -ID=VALUE …
 *
 * "1" is the version of this text. ID is what KVM_SET_ONE_REG takes, VALUE is of at most 64 bits,
 * both hexadecimal without a prefix. A register with "-" in front is left out of the list of
 * registers that QEMU gets: not every host of the pool has it. If it has a value, and the host has
 * the register, then it is set first. Of PMCR_EL0 only N, the number of event counters, is
 * promised: the rest is the guest's to change.
 *
 * Nothing runs at another level than it was promised:
 *
 * - A levelled domain has QEMU read a secret from PROOF, a file that no host has, and that this
 *   library answers for. So without the library QEMU does not start.
 * - A text that is not understood, a register that KVM refuses, and one that reads back as
 *   something else end QEMU, with one line on stderr, which is the guest's log.
 * - A vCPU that was not levelled is not run, and all of it is read again around its first run.
 * - State that arrives with another value for a register that was promised is refused. QEMU then
 *   ends, and the guest goes on where it came from.
 *
 * In a process without KVMARM_LEVEL the library does nothing.
 */

#define _GNU_SOURCE
/* It would make open another name of open64, and both are defined here. arm64 does not need it. */
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/kvm.h>

#define PUBLIC __attribute__((visibility("default")))

/* Of arm64; here by number, so that the tests run on machines of any kind. */
#define VCPU_INIT 0x4020AEAEU        /* KVM_ARM_VCPU_INIT */
#define CAP_WRITABLE_IMP_ID_REGS 239 /* KVM_CAP_ARM_WRITABLE_IMP_ID_REGS, since Linux 6.15 */
#define MIDR_EL1 0x603000000013C000U
#define REVIDR_EL1 0x603000000013C006U
#define AIDR_EL1 0x603000000013C807U
#define PMCR_EL0 0x603000000013DCE0U
#define PMCR_EL0_N 0xF800U

#define VARIABLE "KVMARM_LEVEL"
#define PROOF "/proc/libkvmarm-level.so.1/is-not-loaded" /* QEMU shows this name when it is not */
#define TEXT_VERSION "1"
#define LONGEST_TEXT 16384
#define MOST_REGISTERS 256
#define MOST_FDS 65536

struct promise {
    uint64_t id;
    uint64_t value;
    bool has_value;
    bool left_out;
};

static struct promise promises[MOST_REGISTERS];
static size_t promised;
static bool told; /* whether this process is to level anything */

/* File descriptors of vCPUs. A vCPU that has RUN is LEVELLED, too. */
enum state { UNKNOWN, CREATED, LEVELLED, RUN };
static _Atomic unsigned char states[MOST_FDS];

/* Those of the C library. */
static int (*next_ioctl)(int, unsigned long, ...);
static int (*next_open)(const char *, int, ...);

/* What kvmarm's probe looks for. */
PUBLIC extern const char kvmarm_level_version[];
const char kvmarm_level_version[] = TEXT_VERSION;

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    char line[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    dprintf(STDERR_FILENO, "kvmarm-level: %s\n", line);
    _exit(1);
}

/* -- the text ---------------------------------------------------------------------------------- */

/* A hexadecimal number of at most 16 digits at *text, which is moved behind it. */
static bool read_number(const char **text, uint64_t *number)
{
    int digits = 0;

    for (*number = 0; digits < 17; digits++, (*text)++) {
        char c = **text;
        if (c >= '0' && c <= '9')
            *number = *number << 4 | (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            *number = *number << 4 | (uint64_t)(c - 'a' + 10);
        else
            break;
    }
    return digits > 0 && digits <= 16;
}

/* The length of a register in bytes, from its id (KVM_REG_SIZE). */
static size_t size_of(uint64_t id)
{
    return (size_t)1 << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT);
}

/* Whether QEMU can have such a register in its list, and this is a value of it. */
static bool fits(uint64_t id, uint64_t value)
{
    size_t size = size_of(id);

    return size == sizeof(uint64_t) || (size == sizeof(uint32_t) && value <= UINT32_MAX);
}

/* The bits of a register that are promised. */
static uint64_t promised_bits(uint64_t id)
{
    return id == PMCR_EL0 ? PMCR_EL0_N : UINT64_MAX;
}

/* Fills `promises`; false if the text is not one of kvmarm's. */
static bool read_text(const char *text)
{
    promised = 0;
    if (strnlen(text, LONGEST_TEXT + 1) > LONGEST_TEXT)
        return false;
    if (strncmp(text, TEXT_VERSION, strlen(TEXT_VERSION)) != 0)
        return false;
    text += strlen(TEXT_VERSION);
    while (*text == ' ') {
        struct promise next = {0};

        text++;
        if (promised == MOST_REGISTERS)
            return false;
        if (*text == '-') {
            next.left_out = true;
            text++;
        }
        if (!read_number(&text, &next.id))
            return false;
        if (*text == '=') {
            text++;
            next.has_value = true;
            if (!read_number(&text, &next.value) || !fits(next.id, next.value))
                return false;
        }
        if (!next.has_value && !next.left_out)
            return false;
        for (size_t i = 0; i < promised; i++)
            if (promises[i].id == next.id)
                return false;
        promises[promised++] = next;
    }
    return *text == '\0' && promised > 0;
}

/* Find what this library stands in front of. Others may call it before it has started. */
static void find_next(void)
{
    if (next_ioctl != NULL && next_open != NULL)
        return;
    next_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    next_open = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    if (next_ioctl == NULL || next_open == NULL)
        die("the C library has no ioctl or no open");
}

__attribute__((constructor)) static void start(void)
{
    const char *text = getenv(VARIABLE);

    find_next();
    if (text == NULL)
        return;
    if (!read_text(text))
        die("cannot read %s: it is of another version than " TEXT_VERSION ", or broken", VARIABLE);
    told = true;
    /* Not for the programs that QEMU starts. */
    unsetenv(VARIABLE);
    unsetenv("LD_PRELOAD");
}

/* -- vCPUs ------------------------------------------------------------------------------------- */

static int one_reg(int vcpu, unsigned long request, uint64_t id, uint64_t *value)
{
    /* Of a register of 32 bits KVM reads and writes the first four bytes: the low ones. */
    struct kvm_one_reg reg = {.id = id, .addr = (uintptr_t)value};

    return next_ioctl(vcpu, request, &reg);
}

/* What KVM has in a register; false if it is one to be left out that this host does not have. */
static bool shown(int vcpu, const struct promise *promise, uint64_t *value)
{
    *value = 0;
    if (one_reg(vcpu, KVM_GET_ONE_REG, promise->id, value) == 0)
        return true;
    if (promise->left_out && errno == ENOENT)
        return false;
    die("KVM on this host does not show register %llx (%s)", (unsigned long long)promise->id,
        strerror(errno));
}

static void check(int vcpu)
{
    for (size_t i = 0; i < promised; i++) {
        const struct promise *promise = &promises[i];
        uint64_t value;

        if (promise->has_value && shown(vcpu, promise, &value) &&
            (value ^ promise->value) & promised_bits(promise->id))
            die("register %llx was set to %llx, and KVM on this host shows %llx",
                (unsigned long long)promise->id, (unsigned long long)promise->value,
                (unsigned long long)value);
    }
}

/* Set what was promised, then read all of it: setting one register may change another. */
static void level(int vcpu)
{
    for (size_t i = 0; i < promised; i++) {
        const struct promise *promise = &promises[i];
        uint64_t bits = promised_bits(promise->id), value;

        if (!promise->has_value || !shown(vcpu, promise, &value))
            continue;
        value = (value & ~bits) | (promise->value & bits);
        if (one_reg(vcpu, KVM_SET_ONE_REG, promise->id, &value) != 0)
            die("KVM on this host does not let register %llx be %llx (%s); kvmarm check says why",
                (unsigned long long)promise->id, (unsigned long long)value, strerror(errno));
    }
    check(vcpu);
    states[vcpu] = LEVELLED;
}

/*
 * Linux writes ID registers, too: the fields of the GIC when QEMU creates one (kvm_vgic_create),
 * after the vCPUs, and again as the first vCPU starts to run (kvm_finalize_sys_regs).
 */
static int first_run(int vcpu, void *argument)
{
    int answer, error;

    check(vcpu);
    answer = next_ioctl(vcpu, KVM_RUN, argument);
    error = errno;
    check(vcpu);
    states[vcpu] = RUN;
    errno = error;
    return answer;
}

static bool is_left_out(uint64_t id)
{
    for (size_t i = 0; i < promised; i++)
        if (promises[i].id == id)
            return promises[i].left_out;
    return false;
}

static void leave_out(struct kvm_reg_list *list)
{
    uint64_t kept = 0;

    for (uint64_t i = 0; i < list->n; i++)
        if (!is_left_out(list->reg[i]))
            list->reg[kept++] = list->reg[i];
    list->n = kept;
}

/* Whether QEMU may write this register: what was promised stays. */
static bool may_set(const struct kvm_one_reg *reg)
{
    for (size_t i = 0; i < promised; i++) {
        uint64_t value = 0;

        if (promises[i].id != reg->id || !promises[i].has_value)
            continue;
        memcpy(&value, (const void *)(uintptr_t)reg->addr, size_of(reg->id));
        if (((value ^ promises[i].value) & promised_bits(reg->id)) == 0)
            return true;
        dprintf(STDERR_FILENO,
                "kvmarm-level: the guest's state has %llx in register %llx, and was promised"
                " %llx: it comes from a guest that is not levelled like this one\n",
                (unsigned long long)value, (unsigned long long)reg->id,
                (unsigned long long)promises[i].value);
        return false;
    }
    return true;
}

/* Before it has a vCPU. Kernels without it let no MIDR_EL1 be set: `level` sees to that. */
static void created_vm(int vm)
{
    struct kvm_enable_cap capability = {.cap = CAP_WRITABLE_IMP_ID_REGS};

    for (size_t i = 0; i < promised; i++)
        if (promises[i].has_value && (promises[i].id == MIDR_EL1 || promises[i].id == REVIDR_EL1 ||
                                      promises[i].id == AIDR_EL1)) {
            next_ioctl(vm, KVM_ENABLE_CAP, &capability);
            break;
        }
}

static void created_vcpu(int vcpu)
{
    if (vcpu >= MOST_FDS)
        die("file descriptor %d of a vCPU is beyond %d", vcpu, MOST_FDS);
    states[vcpu] = CREATED;
}

static enum state state_of(int fd)
{
    return fd >= 0 && fd < MOST_FDS ? states[fd] : UNKNOWN;
}

/* -- what QEMU calls --------------------------------------------------------------------------- */

PUBLIC int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;
    int answer;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    find_next();
    if (!told)
        return next_ioctl(fd, request, argument);

    /* The kernel takes 32 bits of it. QEMU 7.2 has it in an int, and the sign is extended. */
    switch ((uint32_t)request) {
    case KVM_SET_ONE_REG:
        if (state_of(fd) >= LEVELLED && !may_set(argument)) {
            errno = EINVAL;
            return -1;
        }
        break;
    case KVM_GET_REG_LIST:
        /*
         * Only of the guest's own vCPUs does QEMU ask for the list, not of the ones that it makes
         * to see what the host has (kvm_arm_init_cpreg_list, kvm_arm_get_host_cpu_features). By
         * now the vCPU is initialised, and SVE finalised.
         */
        if (state_of(fd) == UNKNOWN)
            die("QEMU lists the registers of a vCPU that it has not created");
        if (state_of(fd) == CREATED)
            level(fd);
        break;
    case KVM_RUN:
        if (state_of(fd) == RUN)
            break;
        if (state_of(fd) != LEVELLED)
            die("QEMU runs a vCPU whose registers it has not listed");
        return first_run(fd, argument);
    default:
        break;
    }

    answer = next_ioctl(fd, request, argument);
    if (answer < 0)
        return answer;

    switch ((uint32_t)request) {
    case KVM_CREATE_VM:
        created_vm(answer);
        break;
    case KVM_CREATE_VCPU:
        created_vcpu(answer);
        break;
    case VCPU_INIT:
        /* The guest is reset: before Linux 6.10 CLIDR_EL1 is the host's again. */
        if (state_of(fd) >= LEVELLED)
            level(fd);
        break;
    case KVM_GET_REG_LIST:
        leave_out(argument);
        break;
    default:
        break;
    }
    return answer;
}

static int open_with(const char *path, int flags, mode_t mode)
{
    find_next();
    if (told && path != NULL && strcmp(path, PROOF) == 0)
        path = "/dev/null"; /* a secret of no bytes will do */
    return next_open(path, flags, mode);
}

#define OPEN(name)                                                                                 \
    PUBLIC int name(const char *path, int flags, ...)                                              \
    {                                                                                              \
        va_list arguments;                                                                         \
        mode_t mode = 0;                                                                           \
                                                                                                   \
        va_start(arguments, flags);                                                                \
        if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE)                                   \
            mode = va_arg(arguments, mode_t);                                                      \
        va_end(arguments);                                                                         \
        return open_with(path, flags, mode);                                                       \
    }

OPEN(open)
OPEN(open64)
