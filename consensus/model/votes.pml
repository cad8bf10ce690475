/*
 * The votes of one epoch: ticks, join sets, prepare and commit.
 *
 * Four replicas, f = 1, so Q = 3. Replica 3 is faulty for the whole epoch:
 * its device attests whatever it likes, so each of its votes exists for every
 * record at every tick, and its joins show any committed slot. Replica 2 is
 * correct, but was faulty in the epoch before: garbage may be in its slots, and
 * it may have made join attestations ahead. 0 and 1 are correct.
 *
 * Every step of a correct replica is one transition, and none is ever forced:
 * so a replica may be cut off after any of them, and every order is tried. Only
 * what a device holds binds it from then on. Which tick a replica joins is left
 * open but for "only upward". Once a certificate exists, a replica may Store the
 * head, which clears its other slots, and then Advance its counter, two steps:
 * from the first on it takes no part in the epoch. The engine may decide BLOCKS
 * different blocks in a tick, each of which passes the check; none that fails it
 * need be modelled, since every correct replica checks again.
 *
 * Bounds: TICKS attempts at one epoch, BLOCKS blocks in each.
 * Not modelled: the epoch after, merge, bodies, time, that anything ever ends.
 *
 * The promise is the assertion in accept: no two records are certified. With
 * ONE_COMMIT another is checked: at one tick correct replicas commit one record.
 * Two would not break the promise, but no join set can have both, so that the
 * epoch may never end. Each other macro without a value drops or changes one
 * rule, but for GARBAGE.
 */

#define N 4
#ifndef TICKS
#define TICKS 3
#endif
#ifndef BLOCKS
#define BLOCKS 2
#endif

/* Votes that make a certificate, and vouchers that make a proposal one. */
#ifndef PREPARE_QUORUM
#define PREPARE_QUORUM 3
#endif
#ifndef COMMIT_QUORUM
#define COMMIT_QUORUM 3
#endif
#ifndef VOUCHER_QUORUM
#define VOUCHER_QUORUM 3
#endif

/*
 * Agreement keys of correct replicas that were stolen earlier. A join made
 * ahead answers no challenge of this phase, so no correct replica vouches for
 * it: only stolen keys do, and the faulty replica.
 */
#ifndef STOLEN
#define STOLEN 0
#endif
#ifdef NO_CHALLENGE
#define AHEAD(t) true
#else
#ifdef RESUME /* whoever has joined is made to believe that this answers its challenge */
#define AHEAD(t) (1 + joined[AT(0, t)] + joined[AT(1, t)] + joined[AT(2, t)] >= VOUCHER_QUORUM)
#else
#define AHEAD(t) (1 + STOLEN >= VOUCHER_QUORUM)
#endif
#endif

/* With ROVING another replica is faulty from the second tick on. */
#ifdef ROVING
#define FAULTY(i, t) ((i) == ((t) == 1 -> 3 : 2))
#else
#define FAULTY(i, t) ((i) == 3)
#endif

#define AT(i, t) ((i) * TICKS + (t) - 1)   /* of a replica at a tick */
#define OF(t, k) (((t) - 1) * BLOCKS + (k)) /* of a block of a tick */
#define FRESH(t, k) (OF(t, k) + 1)          /* the record that a block makes, if it carries none */
#define RECORDS (TICKS * BLOCKS)

/* The devices' slots. */
byte slot[N];          /* tick */
byte comTick[N];       /* committed, 0: none of this epoch */
byte comRec[N];
bit head[N];           /* the head is this epoch's record */
bit counter[N];        /* and the epoch counter has passed this epoch */

/* What has been said. It stays said. */
bit joined[N * TICKS];
byte showsTick[N * TICKS]; /* committed slot in the join */
byte showsRec[N * TICKS];
byte block[RECORDS];       /* record of a decided block, 0: not decided */
byte carries[RECORDS];     /* and the tick that it is carried from, 0: fresh */
byte prepared[N * TICKS];  /* bit k: prepare vote for block k */
byte committed[N * TICKS]; /* k + 1: commit vote for block k */

byte certified; /* the first record with a certificate */
byte late;      /* replicas that were faulty once in later epochs and voted for a sibling */

/* Scratch, zero between steps. */
byte members, high, highRec, x, y, votes;
bool fine;

inline tidy() { members = 0; high = 0; highRec = 0; x = 0; y = 0; votes = 0; fine = false }

/* ------------------------------------------------------------- certificates */

#ifdef RAW_NONCE /* a device in update mode signs any nonce for a peer */
#define PREPARE(i, t, k) (FAULTY(i, t) || joined[AT(i, t)])
#else
#define PREPARE(i, t, k) (FAULTY(i, t) || ((prepared[AT(i, t)] >> (k)) & 1))
#endif
#define PREPARES(t, k) (PREPARE(0, t, k) + PREPARE(1, t, k) + PREPARE(2, t, k) + PREPARE(3, t, k))

#define COMMIT(i, t, k) (FAULTY(i, t) || committed[AT(i, t)] == (k) + 1)
#define COMMITS(t, k) (COMMIT(0, t, k) + COMMIT(1, t, k) + COMMIT(2, t, k) + COMMIT(3, t, k))

/* anyTick counts in votes who has voted for rec at whatever tick. */
inline anyTick(isCommit, rec) {
	votes = 0;
	for (x : 0 .. N - 1) {
		fine = FAULTY(x, 1);
		for (y : 0 .. RECORDS - 1) {
			if
			:: block[y] == rec ->
				fine = fine || (isCommit -> committed[AT(x, y / BLOCKS + 1)] == y % BLOCKS + 1 : (prepared[AT(x, y / BLOCKS + 1)] >> (y % BLOCKS)) & 1)
			:: else
			fi
		}
		votes = votes + fine
	}
}

inline accept(rec) {
	assert(certified == 0 || certified == rec);
	certified = rec
}

/* settle sees whether block k of tick t has got its certificate. */
inline settle(t, k) {
#ifdef MIXED_TICKS
	anyTick(true, block[OF(t, k)]);
#else
	votes = COMMITS(t, k);
#endif
	if
	:: votes >= COMMIT_QUORUM -> accept(block[OF(t, k)])
	:: else
	fi
}

/* ------------------------------------------------------------- the block */

#ifdef LOWEST /* the lowest committed tick is adopted, not the highest */
#define ADOPTS(tick) (high == 0 || (tick) < high)
#else
#define ADOPTS(tick) ((tick) > high)
#endif

/* takeIn adds a join with its committed slot to the join set. */
inline takeIn(tick, rec) {
	members++;
	if
	:: (tick) > 0 && ADOPTS(tick) -> high = tick; highRec = rec; fine = true
	:: (tick) > 0 && (tick) == high && (rec) != highRec -> fine = false
	:: else
	fi
}

/* decide makes a block of some join set, if the rule allows one. */
inline decide(t, k) {
	members = 0; high = 0; highRec = 0; fine = true;
	joinOf(0, t); joinOf(1, t); joinOf(2, t); joinOf(3, t);
	d_step {
		if
		:: high >= t -> fine = false
		:: else
		fi;
		if
		:: high > 0 && fine -> shown(high, highRec)
		:: else
		fi;
		if
		:: members < 3 -> fine = false
		:: else
		fi;
#ifdef NO_HONOUR
		high = 0;
#endif
		if
		:: fine && high == 0 -> block[OF(t, k)] = FRESH(t, k); carries[OF(t, k)] = 0
#ifdef REBUILD /* a new record is made of what is carried */
		:: fine && high > 0 -> block[OF(t, k)] = FRESH(t, k); carries[OF(t, k)] = high
#else
		:: fine && high > 0 -> block[OF(t, k)] = highRec; carries[OF(t, k)] = high
#endif
		:: else
		fi;
		if
		:: k > 0 && block[OF(t, k)] == block[OF(t, 0)] -> block[OF(t, k)] = 0; carries[OF(t, k)] = 0 /* no other block */
		:: else
		fi;
		if
		:: block[OF(t, k)] > 0 -> settle(t, k)
		:: else
		fi;
		tidy()
	}
}

/* joinOf takes the join of replica i for tick t into the join set, or does not. */
inline joinOf(i, t) {
	if
	:: true
	:: joined[AT(i, t)] && !FAULTY(i, t) -> takeIn(showsTick[AT(i, t)], showsRec[AT(i, t)])
	:: FAULTY(i, t) || (i == 2 && AHEAD(t)) -> takeIn(0, 0)
	:: FAULTY(i, t) || (i == 2 && AHEAD(t)) -> /* any committed slot that can be shown */
		y = 0;
		do
		:: y + 1 < RECORDS -> y++
		:: break
		od;
		x = y / BLOCKS + 1;
		do
		:: x + 1 < t -> x++
		:: break
		od;
		if
		:: block[y] > 0 && x < t -> takeIn(x, block[y])
		:: else
		fi
#ifdef INSTANCE_UNBOUND /* a join of an earlier tick is taken for one of this */
	:: t > 1 && joined[AT(i, t - 1)] -> takeIn(showsTick[AT(i, t - 1)], showsRec[AT(i, t - 1)])
#endif
	fi
}

/* shown says in fine whether there is a prepare certificate for rec at tick. */
inline shown(tick, rec) {
#ifdef TICK_UNBOUND /* prepare votes count at whatever tick they were made */
	anyTick(false, rec);
#else
	votes = 0;
	for (x : 0 .. N - 1) {
		fine = FAULTY(x, tick);
#ifdef RAW_NONCE
		fine = fine || joined[AT(x, tick)];
#endif
		for (y : 0 .. BLOCKS - 1) {
			fine = fine || (block[OF(tick, y)] == rec && ((prepared[AT(x, tick)] >> y) & 1))
		}
		votes = votes + fine
	}
#endif
	fine = votes >= PREPARE_QUORUM
}

/* ------------------------------------------------------------- a correct replica */

#ifdef NO_STORE /* the tick is stored with the first vote, not before the join */
#define MAY_ACT(i, t) (joined[AT(i, t)] && slot[i] <= t)
#else
#define MAY_ACT(i, t) (joined[AT(i, t)] && slot[i] == t)
#endif

#define MAY_JOIN(i, t) (!head[i] && slot[i] < t && !joined[AT(i, t)])

/* OWN is the replica's own rule: its committed record is not passed over. */
#ifdef NO_OWN
#define OWN(i, t, k) true
#else
#define OWN(i, t, k) (comTick[i] == 0 || carries[OF(t, k)] > comTick[i] || \
	(carries[OF(t, k)] == comTick[i] && block[OF(t, k)] == comRec[i]))
#endif

#ifdef NO_CHECK /* whatever the engine says is believed: it is broken, and says anything */
#define BLOCK(t, k) true
#define SOUND(i, t, k) true
#else
#define BLOCK(t, k) (block[OF(t, k)] > 0)
#define SOUND(i, t, k) OWN(i, t, k)
#endif

#ifdef RESUME /* the directory of another boot is believed: what was said is forgotten, what was asked is the attacker's */
#define UNSAID(i, t, k) (((prepared[AT(i, t)] >> (k)) & 1) == 0)
#else
#define UNSAID(i, t, k) (prepared[AT(i, t)] == 0)
#endif

#define MAY_PREPARE(i, t, k) (!head[i] && MAY_ACT(i, t) && BLOCK(t, k) && UNSAID(i, t, k) && SOUND(i, t, k))

#ifdef NO_PREPARE /* commit without a prepare certificate */
#define SHOWN(i, t, k) true
#else
#ifdef OWN_TWICE
#define SHOWN(i, t, k) (PREPARES(t, k) + 1 >= PREPARE_QUORUM)
#else
#define SHOWN(i, t, k) (PREPARES(t, k) >= PREPARE_QUORUM)
#endif
#endif

#define MAY_COMMIT(i, t, k) (!head[i] && joined[AT(i, t)] && slot[i] == t && comTick[i] < t && \
	((prepared[AT(i, t)] >> (k)) & 1) && SHOWN(i, t, k))

inline join(i, t) {
	joined[AT(i, t)] = 1;
	showsTick[AT(i, t)] = comTick[i];
	showsRec[AT(i, t)] = comRec[i];
#ifndef NO_STORE
	slot[i] = t;
#endif
}

inline prepare(i, t, k) {
#ifdef NO_CHECK
	block[OF(t, k)] = (block[OF(t, k)] == 0 -> FRESH(t, k) : block[OF(t, k)]);
#endif
	slot[i] = t;
	prepared[AT(i, t)] = prepared[AT(i, t)] | (1 << (k));
	settle(t, k);
	tidy()
}

/* OTHERS counts the correct replicas that committed another record at the tick. */
#define OTHER(i, t, k) (committed[AT(i, t)] > 0 && committed[AT(i, t)] != (k) + 1)
#define OTHERS(t, k) (OTHER(0, t, k) + OTHER(1, t, k) + OTHER(2, t, k))

inline commit(i, t, k) {
#ifdef ONE_COMMIT
	assert(OTHERS(t, k) == 0);
#endif
	comTick[i] = t;
	comRec[i] = block[OF(t, k)];
	committed[AT(i, t)] = (k) + 1;
	settle(t, k);
#ifdef OWN_TWICE
	if
	:: COMMITS(t, k) + 1 >= COMMIT_QUORUM -> accept(block[OF(t, k)])
	:: else
	fi;
#endif
	tidy()
}

#if BLOCKS > 1
#define EACH_BLOCK(i, t) \
	:: d_step { MAY_PREPARE(i, t, 0) -> prepare(i, t, 0) } \
	:: d_step { MAY_PREPARE(i, t, 1) -> prepare(i, t, 1) } \
	:: d_step { MAY_COMMIT(i, t, 0) -> commit(i, t, 0) } \
	:: d_step { MAY_COMMIT(i, t, 1) -> commit(i, t, 1) }
#define DECIDE(t) \
	:: atomic { block[OF(t, 0)] == 0 -> decide(t, 0) } \
	:: atomic { block[OF(t, 0)] > 0 && block[OF(t, 1)] == 0 -> decide(t, 1) }
#else
#define EACH_BLOCK(i, t) \
	:: d_step { MAY_PREPARE(i, t, 0) -> prepare(i, t, 0) } \
	:: d_step { MAY_COMMIT(i, t, 0) -> commit(i, t, 0) }
#define DECIDE(t) \
	:: atomic { block[OF(t, 0)] == 0 -> decide(t, 0) }
#endif

#define EACH_TICK(i, t) \
	:: d_step { !FAULTY(i, t) && MAY_JOIN(i, t) -> join(i, t) } \
	EACH_BLOCK(i, t)

proctype replica(byte i) {
end:	do
	EACH_TICK(i, 1)
	EACH_TICK(i, 2)
#if TICKS > 2
	EACH_TICK(i, 3)
#endif
#if TICKS > 3
	EACH_TICK(i, 4)
#endif
#ifdef LOWER /* a new boot begins at tick zero again */
	:: d_step { slot[i] > 0 -> slot[i] = 0 }
#endif
	/* the end of the epoch: Store of the head, then Advance */
	:: d_step { certified > 0 && !head[i] -> head[i] = 1; slot[i] = 0; comTick[i] = 0; comRec[i] = 0 }
	:: d_step { head[i] && !counter[i] -> counter[i] = 1 }
#ifdef WIND_BACK /* without its record on the disk, a head before Advance is wound back to the epoch before */
	:: d_step { head[i] && !counter[i] -> head[i] = 0 }
#endif
#ifdef NO_COUNTER /* faulty in a later epoch, a replica winds its slots back and votes again */
	:: d_step { counter[i] && ((late >> i) & 1) == 0 ->
		late = late | (1 << i);
		votes = 1 + (late & 1) + ((late >> 1) & 1) + ((late >> 2) & 1);
		assert(votes < COMMIT_QUORUM);
		votes = 0
	}
#endif
	od
}

proctype engine() {
end:	do
	DECIDE(1)
	DECIDE(2)
#if TICKS > 2
	DECIDE(3)
#endif
#if TICKS > 3
	DECIDE(4)
#endif
	od
}

init {
	atomic {
#ifdef GARBAGE
		/* whatever replica 2 left in its slots */
		do
		:: slot[2] < TICKS -> slot[2]++
		:: break
		od;
		do
		:: comTick[2] < TICKS -> comTick[2]++
		:: break
		od;
		if
		:: comTick[2] == 0
		:: comTick[2] > 0 ->
			comRec[2] = 1;
			do
			:: comRec[2] < RECORDS -> comRec[2]++
			:: break
			od
		fi;
#endif
		run replica(0);
		run replica(1);
		run replica(2);
#ifdef ROVING
		run replica(3);
#endif
		run engine()
	}
}
