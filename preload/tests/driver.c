// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Plays both sides of the library: QEMU, by the commands on stdin, one a line, and KVM, by a table
 * of registers. What each command comes to is a line on stdout; tests/unit/test_preload.py has the
 * cases. Numbers are hexadecimal, but for file descriptors.
 */

#include "kvmarm-level.c" /* its static functions are tried, too */

#include <pthread.h>

#define MOST_LINES 512

/* -- KVM --------------------------------------------------------------------------------------- */

static struct reg {
    uint64_t id, value, host, writable, after_run;
    bool resets, ignores, runs;
} regs[MOST_LINES];
static size_t known;
static int next_fd = 10;
static pthread_mutex_t kernel = PTHREAD_MUTEX_INITIALIZER;

static struct reg *find(uint64_t id)
{
    for (size_t i = 0; i < known; i++)
        if (regs[i].id == id)
            return &regs[i];
    errno = ENOENT;
    return NULL;
}

static int kvm_one_reg(bool set, const struct kvm_one_reg *one)
{
    struct reg *reg = find(one->id);
    uint64_t value = 0;

    if (reg == NULL)
        return -1;
    if (!set) {
        memcpy((void *)(uintptr_t)one->addr, &reg->value, size_of(reg->id));
        return 0;
    }
    memcpy(&value, (void *)(uintptr_t)one->addr, size_of(reg->id));
    if (((value ^ reg->value) & ~reg->writable) && !reg->ignores) {
        errno = EINVAL;
        return -1;
    }
    reg->value = (reg->value & ~reg->writable) | (value & reg->writable);
    return 0;
}

static int kvm_list(struct kvm_reg_list *list)
{
    bool fits = list->n >= known;

    list->n = known;
    for (size_t i = 0; fits && i < known; i++)
        list->reg[i] = regs[i].id;
    errno = E2BIG;
    return fits ? 0 : -1;
}

static int kvm(unsigned long request, void *argument)
{
    switch ((uint32_t)request) {
    case KVM_CREATE_VM:
    case KVM_CREATE_VCPU:
        return next_fd++;
    case KVM_ENABLE_CAP:
        printf("enabled %u\n", ((struct kvm_enable_cap *)argument)->cap);
        errno = EINVAL; /* as by old kernels: what is promised is read again anyway */
        return -1;
    case VCPU_INIT:
        for (size_t i = 0; i < known; i++)
            if (regs[i].resets)
                regs[i].value = regs[i].host;
        return 0;
    case KVM_GET_ONE_REG:
    case KVM_SET_ONE_REG:
        return kvm_one_reg((uint32_t)request == KVM_SET_ONE_REG, argument);
    case KVM_GET_REG_LIST:
        return kvm_list(argument);
    case KVM_RUN:
        printf("entered\n");
        for (size_t i = 0; i < known; i++)
            if (regs[i].runs)
                regs[i].value = regs[i].after_run;
        errno = EINTR;
        return -1;
    default:
        errno = ENOTTY;
        return -1;
    }
}

static int kvm_ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    int answer;

    (void)fd;
    va_start(arguments, request);
    pthread_mutex_lock(&kernel);
    answer = kvm(request, va_arg(arguments, void *));
    pthread_mutex_unlock(&kernel);
    va_end(arguments);
    return answer;
}

/* -- QEMU -------------------------------------------------------------------------------------- */

static bool as_int; /* whether requests are ints, as in QEMU 7.2 */

static unsigned long as_passed(uint32_t request)
{
    return as_int ? (unsigned long)(int)request : request;
}

static void said(const char *command, int answer)
{
    const char *error = strerrorname_np(errno);

    if (answer < 0)
        printf("%s %s\n", command, error);
    else
        printf("%s %d\n", command, answer);
}

static int one_reg_of_qemu(int vcpu, uint32_t request, uint64_t id, uint64_t *number)
{
    struct kvm_one_reg one = {.id = id, .addr = (uintptr_t)number};

    return ioctl(vcpu, as_passed(request), &one);
}

static void list(int vcpu)
{
    struct kvm_reg_list none = {.n = 0}, *all;

    said("list", ioctl(vcpu, as_passed(KVM_GET_REG_LIST), &none));
    all = malloc(sizeof(*all) + none.n * sizeof(all->reg[0]));
    all->n = none.n;
    said("list", ioctl(vcpu, as_passed(KVM_GET_REG_LIST), all));
    printf("listed");
    for (uint64_t i = 0; i < all->n; i++)
        printf(" %llx", (unsigned long long)all->reg[i]);
    printf("\n");
    free(all);
}

static void *live(void *unused)
{
    int vcpu = ioctl(0, KVM_CREATE_VCPU, 0);

    (void)unused;
    for (int i = 0; i < 100; i++) {
        struct kvm_reg_list none = {.n = 0};

        ioctl(vcpu, VCPU_INIT, NULL);
        ioctl(vcpu, KVM_GET_REG_LIST, &none);
        ioctl(vcpu, KVM_RUN, 0);
        ioctl(vcpu, KVM_RUN, 0);
    }
    return NULL;
}

static void threads(int count)
{
    pthread_t each[64];

    for (int i = 0; i < count; i++)
        pthread_create(&each[i], NULL, live, NULL);
    for (int i = 0; i < count; i++)
        pthread_join(each[i], NULL);
    printf("threads %d\n", count);
}

static void play(const char *line)
{
    unsigned long long id, value, writable;
    char rest[64] = "";
    int fd, count;

    if (sscanf(line, "reg %llx %llx %llx %63s", &id, &value, &writable, rest) >= 3)
        regs[known++] = (struct reg){
            .id = id,
            .value = value,
            .host = value,
            .writable = writable,
            .after_run = strtoull(rest[0] == '=' ? rest + 1 : "0", NULL, 16),
            .resets = strcmp(rest, "resets") == 0,
            .ignores = strcmp(rest, "ignores") == 0,
            .runs = rest[0] == '=',
        };
    else if (sscanf(line, "fd %d", &fd) == 1)
        next_fd = fd;
    else if (strcmp(line, "int") == 0)
        as_int = true;
    else if (strcmp(line, "vm") == 0)
        said("vm", ioctl(3, as_passed(KVM_CREATE_VM), 0));
    else if (strcmp(line, "vcpu") == 0)
        said("vcpu", ioctl(4, as_passed(KVM_CREATE_VCPU), 0));
    else if (sscanf(line, "init %d", &fd) == 1)
        said("init", ioctl(fd, as_passed(VCPU_INIT), NULL));
    else if (sscanf(line, "list %d", &fd) == 1)
        list(fd);
    else if (sscanf(line, "run %d", &fd) == 1)
        said("run", ioctl(fd, as_passed(KVM_RUN), 0));
    else if (sscanf(line, "set %d %llx %llx", &fd, &id, &value) == 3) {
        uint64_t number = value;

        said("set", one_reg_of_qemu(fd, KVM_SET_ONE_REG, id, &number));
    } else if (sscanf(line, "get %d %llx", &fd, &id) == 2) {
        uint64_t number = 0;

        said("get", one_reg_of_qemu(fd, KVM_GET_ONE_REG, id, &number));
        printf("got %llx\n", (unsigned long long)number);
    } else if (sscanf(line, "threads %d", &count) == 1)
        threads(count);
    else
        die("no such command: %s", line);
}

/* -- the text, of any bytes -------------------------------------------------------------------- */

static uint64_t seed;

static uint64_t random_below(uint64_t limit)
{
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    return (seed >> 33) % limit;
}

/* A text that was accepted says no more than what was understood. */
static void understood(const char *text)
{
    char line[LONGEST_TEXT + 1];
    size_t words = 0;

    for (const char *c = text; *c != '\0'; c++)
        words += *c == ' ';
    snprintf(line, sizeof(line), "%s", text);
    strtok(line, " ");
    for (size_t i = 0; i < promised; i++) {
        char *word = strtok(NULL, " "), *equals = strchr(word, '=');
        const struct promise *p = &promises[i];

        if (p->left_out != (*word == '-') || p->has_value != (equals != NULL) ||
            p->id != strtoull(word + p->left_out, NULL, 16) ||
            (equals != NULL && p->value != strtoull(equals + 1, NULL, 16)))
            die("misunderstood: %s", text);
    }
    if (words != promised)
        die("misunderstood: %s", text);
}

static void fuzz(int rounds)
{
    static const char letters[] = "0123456789abcdefF  --==\t\n\x80g";
    int accepted = 0;

    for (int round = 0; round < rounds; round++) {
        char text[256] = "1 603000000013c020=1101 -603000000013c102 -6030000000160003=0";
        size_t length = strlen(text);
        char *exact;

        for (uint64_t n = random_below(5); n > 0; n--) {
            size_t at = random_below(length);
            char c = letters[random_below(sizeof(letters) - 1)];

            switch (random_below(4)) {
            case 0:
                text[at] = c;
                break;
            case 1:
                memmove(text + at, text + at + 1, length-- - at);
                break;
            case 2:
                memmove(text + at + 1, text + at, ++length - at);
                text[at] = c;
                break;
            default:
                text[at] = '\0';
                break;
            }
            length = strlen(text);
            if (length == 0)
                break;
        }
        exact = strdup(text); /* a byte too far is beyond what was allocated */
        if (read_text(exact)) {
            understood(exact);
            accepted++;
        }
        free(exact);
    }
    printf("accepted %d\n", accepted);
}

int main(int argc, char **argv)
{
    char line[256];

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 3) {
        seed = strtoull(argv[1], NULL, 10);
        fuzz(atoi(argv[2]));
        return 0;
    }
    next_ioctl = kvm_ioctl;
    while (fgets(line, sizeof(line), stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        play(line);
    }
    return 0;
}
