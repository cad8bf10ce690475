package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

const (
	// runBlocks is how many blocks are asked for at once. Larger contents come
	// from several replicas side by side.
	runBlocks = 8
	// streams is how many replicas send at a time.
	streams = 4
	// maxBadBlocks is how many damaged blocks one replica may send before it
	// is asked for no more of a content.
	maxBadBlocks = 16
	// maxListed is how many blocks a content may have to be fetched by block:
	// the list of them is kept in memory, 32 bytes each.
	maxListed = 1 << 20
)

// errNoBlocks says that a content cannot be fetched by block, but may come as a
// whole.
var errNoBlocks = errors.New("no list of blocks that fits the entry")

// blockFetch brings a content into a file block by block: each is checked when
// it comes, and only then written.
type blockFetch struct {
	d    *download
	list archive.BlockList
	had  uint64        // size of the file at first: beyond it are zeros
	turn chan struct{} // places for streams
	stop context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, when a block's state changes
	state   []blockState
	taken   map[uint64]time.Time // when each block under way was taken
	low     uint64               // all blocks before it are done
	bytes   uint64               // done
	bad     map[uint64][]uint32  // who sent a block wrong
	moved   time.Time            // when a block was last done
	err     error                // trouble on this side
}

type blockState uint8

const (
	blockMissing blockState = iota
	blockTaken
	blockDone
)

// byBlocks fills the file by block, and keeps of what is in it already the
// blocks that are right. It returns errNoBlocks if that way is barred.
func (d *download) byBlocks(ctx context.Context) error {
	if n := d.want.BlockCount(); n < 2 || n > maxListed {
		return errNoBlocks
	}
	list, err := d.blockList(ctx)
	if err != nil {
		return err
	}
	work, stop := context.WithCancel(ctx)
	defer stop()
	b := &blockFetch{
		d: d, list: list, turn: make(chan struct{}, streams), stop: stop, changed: make(chan struct{}),
		state: make([]blockState, len(list)), taken: make(map[uint64]time.Time),
		bad: make(map[uint64][]uint32), moved: time.Now(),
	}
	if err := b.resume(ctx); err != nil {
		return err
	}
	err = b.run(work)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// blockList returns the list of the content's blocks, from the first replica
// whose list fits the block root. As long as all say that they will have it
// later, it waits, up to the timeout.
func (d *download) blockList(ctx context.Context) (archive.BlockList, error) {
	began, rs := time.Now(), d.usable()
	for wait := backoffMin; len(rs) > 0; {
		l, r, err := first(ctx, rs, func(ctx context.Context, r *replica) (archive.BlockList, error) {
			return d.blockPage(ctx, r, 0)
		}, func(archive.BlockList) {})
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			if !allTransient(err) || time.Since(began) >= d.c.Timeout {
				break
			}
			pause(ctx, wait)
			wait = min(2*wait, backoffMax)
			continue
		}
		if l, err = d.restOfList(ctx, r, l); err == nil {
			return l, nil
		}
		d.c.Log.Warn("no use of a replica's block list", "replica", r.ID, "content", d.want.Digest.String(), "because", err)
		rs = except(rs, r)
	}
	return nil, errNoBlocks
}

func allTransient(err error) bool {
	var nq *NoQuorumError
	if !errors.As(err, &nq) {
		return false
	}
	for _, err := range nq.Replicas {
		if !transient(err) {
			return false
		}
	}
	return true
}

func except(rs []*replica, r *replica) (rest []*replica) {
	for _, o := range rs {
		if o != r {
			rest = append(rest, o)
		}
	}
	return rest
}

// blockPage asks r for a page, which is full unless it is the last.
func (d *download) blockPage(ctx context.Context, r *replica, page uint64) (archive.BlockList, error) {
	ctx, cancel := context.WithTimeout(ctx, d.c.Timeout)
	defer cancel()
	l, err := r.peer.Blocks(ctx, d.want.Digest, page)
	want := min(d.want.BlockCount()-page*wire.MaxBlocks, wire.MaxBlocks)
	if err == nil && uint64(len(l)) != want {
		err = fmt.Errorf("block list %w: %d blocks in page %d, want %d", ErrIntegrity, len(l), page, want)
	}
	return l, err
}

func (d *download) restOfList(ctx context.Context, r *replica, l archive.BlockList) (archive.BlockList, error) {
	for uint64(len(l)) < d.want.BlockCount() {
		more, err := d.blockPage(ctx, r, uint64(len(l))/wire.MaxBlocks)
		if err != nil {
			return nil, err
		}
		l = append(l, more...)
	}
	return l, d.want.CheckBlocks(l)
}

// resume marks the blocks done that the file holds already.
func (b *blockFetch) resume(ctx context.Context) error {
	fi, err := b.d.f.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	b.had = min(uint64(fi.Size()), b.d.want.Size)
	buf := make([]byte, archive.BlockSize)
	for i := uint64(0); i < uint64(len(b.list)) && i*archive.BlockSize+b.d.want.BlockLen(i) <= b.had; i++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		block := buf[:b.d.want.BlockLen(i)]
		if _, err := b.d.f.ReadAt(block, int64(i*archive.BlockSize)); err == nil && archive.DigestOf(block) == b.list[i] {
			b.done(i)
		}
	}
	if err := b.d.f.Truncate(int64(b.d.want.Size)); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	return nil
}

// run fetches what is missing, while it hashes the whole as it grows.
func (b *blockFetch) run(ctx context.Context) error {
	var workers sync.WaitGroup
	for _, r := range b.d.usable() {
		workers.Go(func() { b.work(ctx, r) })
	}
	fetched := make(chan struct{})
	go func() { workers.Wait(); close(fetched) }()
	sum, err := b.follow(fetched)
	b.stop()
	<-fetched
	if err != nil {
		return err
	}
	if sum != b.d.want.Digest {
		b.d.c.Log.Warn("block root and digest of an entry disagree", "content", b.d.want.Digest.String())
		return errNoBlocks
	}
	return nil
}

// follow hashes the file as far as it is whole, to its end. It fails when
// nothing comes any more.
func (b *blockFetch) follow(fetched <-chan struct{}) (archive.Digest, error) {
	h := sha256.New()
	buf := make([]byte, archive.BlockSize)
	for i := uint64(0); i < uint64(len(b.list)); {
		low, changed := b.front()
		if i < low {
			block := buf[:b.d.want.BlockLen(i)]
			if _, err := b.d.f.ReadAt(block, int64(i*archive.BlockSize)); err != nil {
				return archive.Digest{}, fmt.Errorf("%w: %w", errFile, err)
			}
			h.Write(block)
			i++
			continue
		}
		select {
		case <-changed:
		case <-fetched:
			if low, _ := b.front(); low <= i {
				return archive.Digest{}, b.failure()
			}
		}
	}
	return archive.Digest(h.Sum(nil)), nil
}

func (b *blockFetch) front() (low uint64, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.low, b.changed
}

func (b *blockFetch) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	return b.d.failure()
}

// work fetches from one replica until nothing is left that it may send, or it
// fails for good, or nothing has come from anybody for the timeout.
func (b *blockFetch) work(ctx context.Context, r *replica) {
	wait := backoffMin
	for {
		more, moved, err := b.oneRun(ctx, r)
		switch {
		case !more || ctx.Err() != nil:
			return
		case errors.Is(err, errFile):
			b.fail(err)
			return
		case err == nil:
			wait = backoffMin
			continue
		case !transient(err) || moved >= b.d.c.Timeout:
			return
		}
		b.d.c.demote(r)
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, backoffMax)
	}
}

// oneRun fetches one run once a stream is free, and returns how long ago a block
// was last done.
func (b *blockFetch) oneRun(ctx context.Context, r *replica) (more bool, moved time.Duration, err error) {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return false, 0, ctx.Err()
	}
	run := b.take(ctx, r)
	if len(run) == 0 {
		return false, 0, nil
	}
	err = b.fetch(ctx, r, run)
	return true, b.giveBack(run, r, err), err
}

func (b *blockFetch) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	b.stop()
}

// take returns the next run of blocks for r, once there is one; none: there
// will be none.
func (b *blockFetch) take(ctx context.Context, r *replica) []uint64 {
	for {
		run, changed, hope := b.tryTake(r)
		if len(run) > 0 || !hope {
			return run
		}
		timer := time.NewTimer(b.patience())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// patience is how long a block may be under way before another replica is asked
// for it too, when there is nothing else to do.
func (b *blockFetch) patience() time.Duration { return b.d.c.Timeout / 4 }

func (b *blockFetch) tryTake(r *replica) (run []uint64, changed <-chan struct{}, hope bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.d.bad[r.ID] != nil {
		return nil, nil, false
	}
	now := time.Now()
	var late []uint64
	for i := b.low; i < uint64(len(b.state)) && len(run) < runBlocks; i++ {
		may := b.state[i] != blockDone && !b.sentBad(i, r)
		hope = hope || may
		if len(run) > 0 && (!may || b.state[i] != blockMissing) {
			break
		}
		switch {
		case may && b.state[i] == blockMissing:
			run = append(run, i)
		case may && len(late) == 0 && now.Sub(b.taken[i]) >= b.patience():
			late = []uint64{i}
		}
	}
	if len(run) == 0 {
		run = late
	}
	for _, i := range run {
		b.state[i], b.taken[i] = blockTaken, now
	}
	return run, b.changed, hope
}

func (b *blockFetch) sentBad(i uint64, r *replica) bool {
	for _, id := range b.bad[i] {
		if id == r.ID {
			return true
		}
	}
	return false
}

// giveBack makes missing again what of run did not come, notes why, and returns
// how long ago a block was last done.
func (b *blockFetch) giveBack(run []uint64, r *replica, err error) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.d.errs[r.ID] = err
	}
	for _, i := range run {
		if b.state[i] == blockTaken {
			b.state[i] = blockMissing
			delete(b.taken, i)
		}
	}
	b.wake()
	return time.Since(b.moved)
}

// wake is called with mu held.
func (b *blockFetch) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// done marks a block that is in the file.
func (b *blockFetch) done(i uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state[i] == blockDone {
		return
	}
	delete(b.taken, i)
	b.state[i], b.moved, b.d.kept = blockDone, time.Now(), true
	b.bytes += b.d.want.BlockLen(i)
	for b.low < uint64(len(b.state)) && b.state[b.low] == blockDone {
		b.low++
	}
	b.wake()
}

// fetch brings a run of successive blocks from r. One that is damaged is left
// out, the next ones are read on.
func (b *blockFetch) fetch(ctx context.Context, r *replica, run []uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from, last := run[0]*archive.BlockSize, run[len(run)-1]
	n := last*archive.BlockSize + b.d.want.BlockLen(last) - from
	body, size, err := r.peer.ContentPart(ctx, b.d.want.Digest, int64(from), int64(n))
	if err != nil {
		return inTime(err, b.d.c.Timeout)
	}
	defer body.Close()
	if size < 0 || uint64(size) != b.d.want.Size {
		return fmt.Errorf("content %w: %d bytes, want %d", ErrIntegrity, size, b.d.want.Size)
	}
	buf := make([]byte, archive.BlockSize)
	for _, i := range run {
		block := buf[:b.d.want.BlockLen(i)]
		if _, err := io.ReadFull(body, block); err != nil {
			return fmt.Errorf("content: ended in block %d: %w", i, err)
		}
		if err := b.receive(i, block, r); err != nil {
			return err
		}
	}
	return nil
}

// receive checks a block and writes it, or blames r for it.
func (b *blockFetch) receive(i uint64, block []byte, r *replica) error {
	if archive.DigestOf(block) != b.list[i] {
		return b.blame(i, r)
	}
	at := i * archive.BlockSize
	if at < b.had || !allZero(block) { // else the hole says the same
		if _, err := b.d.f.WriteAt(block, int64(at)); err != nil {
			return fmt.Errorf("%w: %w", errFile, err)
		}
	}
	b.done(i)
	b.mu.Lock()
	total := b.bytes
	b.mu.Unlock()
	b.d.c.tell(Progress{Stage: "fetch", Digest: b.d.want.Digest, Replica: r.ID, Done: total, Total: b.d.want.Size})
	return nil
}

var zeroBlock [64 << 10]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroBlock))
		if !bytes.Equal(b[:n], zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// blame notes that r sent block i wrong. It returns an error when r has done so
// too often.
func (b *blockFetch) blame(i uint64, r *replica) error {
	b.d.c.Log.Warn("replica sent a damaged block", "replica", r.ID, "content", b.d.want.Digest.String(), "block", i)
	b.d.c.demote(r)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad[i] = append(b.bad[i], r.ID)
	b.d.blamed[r.ID]++
	b.d.errs[r.ID] = fmt.Errorf("content %w: block %d is damaged", ErrIntegrity, i)
	if b.d.blamed[r.ID] < maxBadBlocks {
		return nil
	}
	b.d.bad[r.ID] = fmt.Errorf("content %w: %d blocks are damaged, the last %d", ErrIntegrity, b.d.blamed[r.ID], i)
	return b.d.bad[r.ID]
}
