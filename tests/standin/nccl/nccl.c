// A stand-in for NCCL where there is no GPU: libnccl.so.2 for processes on one machine and arrays in host memory.
//
// It has the functions that CuPy's module cupy.cuda.nccl asks for. As in NCCL, an operation is only started by its
// call: a thread of the communicator runs them, one after another, so an array that is read or written too early has
// the wrong numbers. With no GPU there are no streams and events: the stream is here the address of an int of the
// operation's own, which becomes 1 when it has ended. Stricter than NCCL: null pointers, unknown types and buffers that
// overlap are refused, and ranks whose calls differ get an error where NCCL would hang or send wrong numbers.
//
// Ranks share a segment of memory. In it each rank has a slot and two counters, `posted` and `done`. A collective
// operation is made of exchanges: wait until all are done with the one before; write my slot, post; wait until all have
// posted; read the slots, say done. A longer array goes piece by piece. For send and recv each pair of ranks has a box
// for each direction; those of one group take turns, so that none stands before another.
//
// It says nothing about CUDA streams, speed, memory, NCCL's own rounding (it sums in the order of the ranks, in float32
// at least), its rule for the maximum of NaN, or what happens to ranks on several machines.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SLOT = 1 << 16, BOX = 1 << 14, MOST = 64 };  // bytes of a slot, of a box; operations of a group
enum { OK, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR };
enum { INT8, UINT8, INT32, UINT32, INT64, UINT64, FLOAT16, FLOAT32, FLOAT64, BFLOAT16, TYPES };
enum { SUM, PROD, MAX, MIN, AVG };
enum { ALL_REDUCE = 1, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, SEND, RECV, SPLIT };

static const size_t SIZE[TYPES] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

typedef struct { char internal[128]; } Id;
typedef struct { int kind, type, op, root; size_t count; } Call;  // what all ranks must agree on; root: or the peer
typedef struct { Call call; const char* in; char* out; _Atomic int* event; size_t moved; int ended; } Op;
typedef struct Batch { struct Batch* next; int count; Op ops[]; } Batch;  // operations of one group

typedef struct { _Atomic long posted, done; Call call; } __attribute__((aligned(64))) Rank;
typedef struct { _Atomic long written, read; _Atomic int refused; size_t total; char bytes[BOX]; }
    __attribute__((aligned(64))) Box;
typedef struct { _Atomic int attached; } __attribute__((aligned(64))) Head;

typedef struct Comm {
  int rank, size;
  char name[160];
  size_t bytes;
  Head* head;
  Rank* ranks;  // (size)
  char* slots;  // (size, SLOT)
  Box* boxes;   // (size, size): by source and target
  long exchanges, splits;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t change;
  Batch *first, **last;  // waiting; the first is being run
  _Atomic int error, aborted;
  int stop;
} Comm;

// ---- waiting --------------------------------------------------------------------------------------------------------

static void pause_a_little(int turn) {
  struct timespec nap = {0, 50000};
  if (turn < 100) sched_yield(); else nanosleep(&nap, NULL);
}

// Wait for the condition; leave the function with an error where the communicator is aborted.
#define WAIT(condition) \
  for (int turn = 0; !(condition); turn++) { if (comm->aborted) return REMOTE_ERROR; pause_a_little(turn); }

// ---- exchanges and reductions ---------------------------------------------------------------------------------------

static int own_slot(Comm* comm) {  // until nobody reads it any more
  for (int r = 0; r < comm->size; r++) WAIT(comm->ranks[r].done >= comm->exchanges);
  return OK;
}

static int post(Comm* comm, Call call) {  // my slot is written; until all slots are
  Rank* mine = &comm->ranks[comm->rank];
  mine->call = call;
  mine->posted = comm->exchanges + 1;
  for (int r = 0; r < comm->size; r++) WAIT(comm->ranks[r].posted > comm->exchanges);
  for (int r = 0; r < comm->size; r++) {
    Call other = comm->ranks[r].call;
    if (other.kind != call.kind || other.type != call.type || other.op != call.op || other.root != call.root ||
        other.count != call.count) return INVALID_USAGE;
  }
  return OK;
}

static void end_exchange(Comm* comm) { comm->ranks[comm->rank].done = ++comm->exchanges; }

static float wide(uint16_t x) { uint32_t bits = (uint32_t)x << 16; float y; memcpy(&y, &bits, 4); return y; }
static uint16_t narrow(float x) {  // to the nearest, ties to even
  uint32_t bits; memcpy(&bits, &x, 4);
  if (x != x) return (bits >> 16) | 64;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#define SAME(x) (x)

// Element by element over the slots' parts that begin at `place`, in the order of the ranks, in a type S.
#define LOOP(T, S, READ, WRITE)                                                        \
  for (size_t i = 0; i < count; i++) {                                                 \
    S total = READ(((const T*)(comm->slots + place))[i]);                              \
    for (int r = 1; r < comm->size; r++) {                                             \
      S x = READ(((const T*)(comm->slots + (size_t)r * SLOT + place))[i]);             \
      if (op == MAX) total = x > total ? x : total;                                    \
      else if (op == MIN) total = x < total ? x : total;                               \
      else if (op == PROD) total *= x;                                                 \
      else total += x;                                                                 \
    }                                                                                  \
    ((T*)out)[i] = WRITE(op == AVG ? (S)(total / comm->size) : total);                 \
  }

static void reduce_slots(Comm* comm, char* out, size_t count, size_t place, int type, int op) {
  switch (type) {
    case UINT8: LOOP(uint8_t, uint8_t, SAME, SAME) break;
    case INT32: LOOP(int32_t, int32_t, SAME, SAME) break;
    case INT64: LOOP(int64_t, int64_t, SAME, SAME) break;
    case FLOAT32: LOOP(float, float, SAME, SAME) break;
    case FLOAT64: LOOP(double, double, SAME, SAME) break;
    case BFLOAT16: LOOP(uint16_t, float, wide, narrow) break;
  }
}

static int can_reduce(int type) {
  return type == UINT8 || type == INT32 || type == INT64 || type == FLOAT32 || type == FLOAT64 || type == BFLOAT16;
}

// ---- operations, on the communicator's thread -----------------------------------------------------------------------

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

static int run_collective(Comm* comm, Op* op) {
  Call call = op->call;
  int n = comm->size, me = comm->rank, root = call.root, kind = call.kind, error;
  size_t width = SIZE[call.type], whole = call.count * width, place = 0;
  int parts = kind == REDUCE_SCATTER ? n : 1;  // a slot holds as many pieces, each of the array's n-th part
  size_t step = SLOT / parts / 64 * 64;
  do {
    size_t bytes = least(step, whole - place);
    char *slots = comm->slots, *mine = slots + (size_t)me * SLOT, *out = op->out + place;
    if ((error = own_slot(comm))) return error;
    if (kind != BROADCAST || me == root)
      for (int part = 0; part < parts; part++) memcpy(mine + part * step, op->in + part * whole + place, bytes);
    if ((error = post(comm, call))) return error;
    if (kind == REDUCE_SCATTER) reduce_slots(comm, out, bytes / width, me * step, call.type, call.op);
    if (kind == ALL_REDUCE || (kind == REDUCE && me == root))
      reduce_slots(comm, out, bytes / width, 0, call.type, call.op);
    if (kind == BROADCAST) memcpy(out, slots + (size_t)root * SLOT, bytes);
    if (kind == ALL_GATHER)
      for (int r = 0; r < n; r++) memcpy(out + r * whole, slots + (size_t)r * SLOT, bytes);
    end_exchange(comm);
    place += bytes;
  } while (place < whole);
  return OK;
}

// Move a piece if the box allows; whether anything happened, or minus an error.
static int move_piece(Comm* comm, Op* op) {
  int sends = op->call.kind == SEND, peer = op->call.root, n = comm->size;
  Box* box = &comm->boxes[sends ? comm->rank * n + peer : peer * n + comm->rank];
  size_t total = op->call.count * SIZE[op->call.type], bytes = least(BOX, total - op->moved);
  if (box->refused) return -INVALID_USAGE;
  if (sends ? box->written != box->read : box->written == box->read) return 0;
  if (sends) {
    if (bytes) memcpy(box->bytes, op->in + op->moved, bytes);
    box->total = total;
    box->written++;
  } else {
    if (box->total != total) { box->refused = 1; return -INVALID_USAGE; }
    if (bytes) memcpy(op->out + op->moved, box->bytes, bytes);
    box->read++;
  }
  op->moved += bytes;
  op->ended = op->moved == total;
  return 1;
}

// The sends and recvs of a group, all at once; those of one direction with one peer in their order.
static int run_messages(Comm* comm, Batch* batch) {
  for (int left = 1, turn = 0; left; turn++) {
    left = 0;
    for (int i = 0; i < batch->count; i++) {
      Op* op = &batch->ops[i];
      int blocked = op->ended || op->call.kind < SEND;
      for (int j = 0; j < i && !blocked; j++)
        blocked = !batch->ops[j].ended && batch->ops[j].call.kind == op->call.kind &&
                  batch->ops[j].call.root == op->call.root;
      int moved = blocked ? 0 : move_piece(comm, op);
      if (moved < 0) return -moved;
      if (moved) turn = 0;
      left |= op->call.kind >= SEND && !op->ended;
    }
    if (comm->aborted) return REMOTE_ERROR;
    if (left) pause_a_little(turn);
  }
  return OK;
}

static int run_batch(Comm* comm, Batch* batch) {
  int error = comm->error;  // what ended an operation ends all that follow
  for (int i = 0; i < batch->count && !error; i++)
    if (batch->ops[i].call.kind < SEND) error = run_collective(comm, &batch->ops[i]);
  return error ? error : run_messages(comm, batch);
}

static void* run_all(void* argument) {
  Comm* comm = argument;
  pthread_mutex_lock(&comm->lock);
  for (;;) {
    while (!comm->first && !comm->stop) pthread_cond_wait(&comm->change, &comm->lock);
    Batch* batch = comm->first;
    if (!batch) break;
    pthread_mutex_unlock(&comm->lock);
    int error = run_batch(comm, batch);
    pthread_mutex_lock(&comm->lock);
    if (error) comm->error = error;
    else for (int i = 0; i < batch->count; i++) *batch->ops[i].event = 1;
    if (!(comm->first = batch->next)) comm->last = &comm->first;
    free(batch);
    pthread_cond_broadcast(&comm->change);
  }
  pthread_mutex_unlock(&comm->lock);
  return NULL;
}

static int wait_for_all(Comm* comm) {
  pthread_mutex_lock(&comm->lock);
  while (comm->first) pthread_cond_wait(&comm->change, &comm->lock);
  pthread_mutex_unlock(&comm->lock);
  return comm->error;
}

// ---- calls and groups -----------------------------------------------------------------------------------------------

static __thread int depth;         // of groups that are open on this thread
static __thread int held;          // operations that wait for the end of the group
static __thread Op held_ops[MOST];
static __thread Comm* held_comms[MOST];

static void enqueue(Comm* comm, const Op* ops, int count) {
  Batch* batch = calloc(1, sizeof *batch + count * sizeof *ops);
  batch->count = count;
  memcpy(batch->ops, ops, count * sizeof *ops);
  pthread_mutex_lock(&comm->lock);
  *comm->last = batch;
  comm->last = &batch->next;
  pthread_cond_broadcast(&comm->change);
  pthread_mutex_unlock(&comm->lock);
}

// Whether buffers overlap otherwise than the in-place form, where they begin `offset` bytes apart.
static int overlap(const char* small, size_t small_bytes, const char* big, size_t big_bytes, size_t offset) {
  return small != big + offset && small < big + big_bytes && big < small + small_bytes;
}

static int call(Comm* comm, int kind, const void* in, void* out, size_t count, int type, int op, int root, void* stream) {
  if (!comm || comm->aborted || (uintptr_t)stream < 4096) return INVALID_ARGUMENT;
  if (type < 0 || type >= TYPES || op < SUM || op > AVG) return INVALID_ARGUMENT;
  if (root < 0 || root >= comm->size || (kind >= SEND && root == comm->rank)) return INVALID_ARGUMENT;
  if (kind <= REDUCE_SCATTER && !can_reduce(type)) return INVALID_ARGUMENT;
  int reads = kind != RECV && !(kind == BROADCAST && comm->rank != root);
  int writes = kind != SEND && !(kind == REDUCE && comm->rank != root);
  if (count && ((reads && (uintptr_t)in < 4096) || (writes && (uintptr_t)out < 4096))) return INVALID_ARGUMENT;
  size_t bytes = count * SIZE[type], mine = comm->rank * bytes, all = comm->size * bytes;
  if (kind == REDUCE_SCATTER && overlap(out, bytes, in, all, mine)) return INVALID_USAGE;
  if (kind == ALL_GATHER && overlap(in, bytes, out, all, mine)) return INVALID_USAGE;
  if (reads && writes && kind != REDUCE_SCATTER && kind != ALL_GATHER && overlap(in, bytes, out, bytes, 0))
    return INVALID_USAGE;
  Op it = {{kind, type, op, root, count}, in, out, stream, 0, 0};
  if (!depth) { enqueue(comm, &it, 1); return OK; }
  if (held == MOST) return INVALID_USAGE;
  held_ops[held] = it;
  held_comms[held++] = comm;
  return OK;
}

int ncclAllReduce(const void* in, void* out, size_t count, int type, int op, Comm* comm, void* stream) {
  return call(comm, ALL_REDUCE, in, out, count, type, op, 0, stream);
}
int ncclReduce(const void* in, void* out, size_t count, int type, int op, int root, Comm* comm, void* stream) {
  return call(comm, REDUCE, in, out, count, type, op, root, stream);
}
int ncclReduceScatter(const void* in, void* out, size_t count, int type, int op, Comm* comm, void* stream) {
  return call(comm, REDUCE_SCATTER, in, out, count, type, op, 0, stream);
}
int ncclAllGather(const void* in, void* out, size_t count, int type, Comm* comm, void* stream) {
  return call(comm, ALL_GATHER, in, out, count, type, SUM, 0, stream);
}
int ncclBroadcast(const void* in, void* out, size_t count, int type, int root, Comm* comm, void* stream) {
  return call(comm, BROADCAST, in, out, count, type, SUM, root, stream);
}
int ncclBcast(void* buffer, size_t count, int type, int root, Comm* comm, void* stream) {
  return call(comm, BROADCAST, buffer, buffer, count, type, SUM, root, stream);
}
int ncclSend(const void* in, size_t count, int type, int peer, Comm* comm, void* stream) {
  return call(comm, SEND, in, NULL, count, type, SUM, peer, stream);
}
int ncclRecv(void* out, size_t count, int type, int peer, Comm* comm, void* stream) {
  return call(comm, RECV, NULL, out, count, type, SUM, peer, stream);
}

int ncclGroupStart(void) { depth++; return OK; }

int ncclGroupEnd(void) {
  if (!depth) return INVALID_USAGE;
  if (--depth) return OK;
  for (int i = 0; i < held; i++) {  // all of one communicator together
    Op ops[MOST];
    int count = 0;
    Comm* comm = held_comms[i];
    for (int j = i; comm && j < held; j++)
      if (held_comms[j] == comm) { ops[count++] = held_ops[j]; held_comms[j] = NULL; }
    if (comm) enqueue(comm, ops, count);
  }
  held = 0;
  return OK;
}

// ---- communicators --------------------------------------------------------------------------------------------------

static int attach(Comm** out, const char* name, int size, int rank) {
  Comm* comm = calloc(1, sizeof *comm);
  size_t ranks = size * sizeof(Rank), slots = (size_t)size * SLOT, boxes = (size_t)size * size * sizeof(Box);
  comm->rank = rank, comm->size = size, comm->bytes = sizeof(Head) + ranks + slots + boxes;
  snprintf(comm->name, sizeof comm->name, "%s", name);
  int file = shm_open(name, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, comm->bytes)) return SYSTEM_ERROR;
  char* memory = mmap(NULL, comm->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return SYSTEM_ERROR;
  comm->head = (Head*)memory;
  comm->ranks = (Rank*)(memory + sizeof(Head));
  comm->slots = (char*)comm->ranks + ranks;
  comm->boxes = (Box*)(comm->slots + slots);
  comm->last = &comm->first;
  pthread_mutex_init(&comm->lock, NULL);
  pthread_cond_init(&comm->change, NULL);
  if (++comm->head->attached == size) shm_unlink(name);  // it ends with the last process that has it
  WAIT(comm->head->attached >= size);
  if (pthread_create(&comm->thread, NULL, run_all, comm)) return SYSTEM_ERROR;
  *out = comm;
  return OK;
}

int ncclGetUniqueId(Id* id) {
  static int number;
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof *id, "/minillm-nccl-%d-%d-%lx", getpid(), number++, (long)time(NULL));
  return OK;
}

int ncclCommInitRankConfig(Comm** out, int size, Id id, int rank, void* config) {
  (void)config;
  if (size < 1 || rank < 0 || rank >= size || strncmp(id.internal, "/minillm-nccl-", 14)) return INVALID_ARGUMENT;
  return attach(out, id.internal, size, rank);
}
int ncclCommInitRank(Comm** out, int size, Id id, int rank) { return ncclCommInitRankConfig(out, size, id, rank, NULL); }
int ncclCommInitAll(Comm** out, int size, const int* devices) {
  (void)out, (void)size, (void)devices;
  return INVALID_USAGE;  // one process for all devices: not here
}

int ncclCommSplit(Comm* comm, int color, int key, Comm** out, void* config) {
  (void)config;
  *out = NULL;
  if (!comm || comm->aborted || depth) return INVALID_ARGUMENT;
  int error = wait_for_all(comm), pair[2] = {color, key}, rank = 0, size = 0;
  if (error || (error = own_slot(comm))) return error;
  memcpy(comm->slots + (size_t)comm->rank * SLOT, pair, sizeof pair);
  if ((error = post(comm, (Call){SPLIT, UINT8, SUM, 0, 0}))) return error;
  for (int r = 0; r < comm->size; r++) {  // in the order of key, then of rank
    int* other = (int*)(comm->slots + (size_t)r * SLOT);
    if (other[0] != color) continue;
    size++;
    rank += other[1] < key || (other[1] == key && r < comm->rank);
  }
  end_exchange(comm);
  char name[200];
  snprintf(name, sizeof name, "%s.%ld.%d", comm->name, comm->splits++, color);
  return color < 0 ? OK : attach(out, name, size, rank);
}

static void leave(Comm* comm) {
  pthread_mutex_lock(&comm->lock);
  comm->stop = 1;
  pthread_cond_broadcast(&comm->change);
  pthread_mutex_unlock(&comm->lock);
  pthread_join(comm->thread, NULL);
}

int ncclCommDestroy(Comm* comm) {  // when what was started has ended
  if (!comm) return OK;
  leave(comm);
  munmap(comm->head, comm->bytes);
  free(comm);
  return OK;
}
int ncclCommAbort(Comm* comm) {  // what was started ends with an error; another thread may still look, so nothing is freed
  if (!comm) return OK;
  comm->aborted = 1;
  leave(comm);
  return OK;
}

int ncclCommGetAsyncError(Comm* comm, int* error) {
  if (!comm) return INVALID_ARGUMENT;
  *error = comm->error;
  return OK;
}
int ncclCommCount(Comm* comm, int* count) { *count = comm->size; return OK; }
int ncclCommUserRank(Comm* comm, int* rank) { *rank = comm->rank; return OK; }
int ncclCommCuDevice(Comm* comm, int* device) { (void)comm; *device = 0; return OK; }
int ncclGetVersion(int* version) { *version = 22707; return OK; }
const char* ncclGetErrorString(int error) {
  static const char* told[] = {"no error", "CUDA error", "system error", "internal error", "invalid argument",
                               "invalid usage: ranks or buffers do not fit together", "a rank failed"};
  return error >= 0 && error <= REMOTE_ERROR ? told[error] : "unknown error";
}
