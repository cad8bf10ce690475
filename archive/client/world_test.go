package client

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
)

// fake is a replica in memory, as honest as a test wants it.
type fake struct {
	w  *forge.World
	id uint32

	mu       sync.Mutex
	behind   int                                 // epochs
	delay    time.Duration                       // of every call
	stopped  bool                                // every call hangs
	err      error                               // of every call
	lie      func(archive.Answer) archive.Answer // told in answers
	liePage  func(tree.Proof) tree.Proof         // told in proofs
	limit    int                                 // names in a page; 0: as many as asked for
	lieBytes func(io.ReadCloser) io.ReadCloser   // told in contents
	lieList  func(archive.BlockList) archive.BlockList
	noBlocks bool                           // as a replica that knows no block lists
	contents map[archive.Digest][]byte      // held
	partial  map[archive.Digest][]byte      // of uploads that were interrupted
	onRead   func(n int)                    // after each read of an upload's bytes
	addErr   func(archive.Submission) error // of Add
	onAdd    func(archive.Submission)       // after an Add
	pending  map[archive.Name]bool          // waiting for the next phase
	calls    map[string]int                 // by method
	fork     *forge.Epoch                   // shown instead of the newest

	lieHistory func([]wire.SignedRecord) []wire.SignedRecord // told in histories
}

var _ Peer = (*fake)(nil)

// enter counts a call, and fails or hangs as the fake is told to.
func (f *fake) enter(ctx context.Context, what string) error {
	f.mu.Lock()
	f.calls[what]++
	stopped, err, delay := f.stopped, f.err, f.delay
	f.mu.Unlock()
	if delay > 0 && !pause(ctx, delay) {
		return ctx.Err()
	}
	if stopped {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[what]
}

func (f *fake) now() forge.Epoch {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fork != nil {
		return *f.fork
	}
	return f.w.Ago(f.behind)
}

func (f *fake) Answer(ctx context.Context, q wire.AnswerRequest) (archive.Answer, error) {
	if err := f.enter(ctx, "answer"); err != nil {
		return archive.Answer{}, err
	}
	e := f.now()
	if e.Record.Epoch == 0 {
		return archive.Answer{}, wire.Errorf(wire.CodeNoEpoch, "no epoch yet")
	}
	p := e.Tree.Prove([]byte(q.Name))
	if q.Range != nil {
		p = e.Tree.ProveRange(q.Range.From, q.Range.To, q.Range.Limit)
	}
	a := f.w.Answer(f.id, e, q.Nonce, p)
	if f.lie != nil {
		a = f.lie(a)
	}
	return a, nil
}

// proofs is what the fake gives for proofs, in one reply.
func (f *fake) proofs(ctx context.Context, head archive.Digest, prove ...func(*tree.Memory) tree.Proof) (all []tree.Proof, err error) {
	if err := f.enter(ctx, "proof"); err != nil {
		return nil, err
	}
	e := f.now()
	if e.Record.Head() != head {
		return nil, wire.Errorf(wire.CodeStaleHead, "at epoch %d", e.Record.Epoch)
	}
	for _, make := range prove {
		p := make(e.Tree)
		if f.liePage != nil {
			p = f.liePage(p)
		}
		all = append(all, p)
	}
	return all, nil
}

// Proofs gives f.limit proofs at most, as a reply that is full.
func (f *fake) Proofs(ctx context.Context, head archive.Digest, names []archive.Name) ([]tree.Proof, error) {
	var prove []func(*tree.Memory) tree.Proof
	for _, n := range names[:min(len(names), cmp.Or(f.limit, len(names)))] {
		prove = append(prove, func(t *tree.Memory) tree.Proof { return t.Prove([]byte(n)) })
	}
	return f.proofs(ctx, head, prove...)
}

func (f *fake) ProofRange(ctx context.Context, head archive.Digest, from, to []byte, limit int) (tree.Proof, error) {
	all, err := f.proofs(ctx, head, func(t *tree.Memory) tree.Proof { return t.ProveRange(from, to, min(limit, cmp.Or(f.limit, limit))) })
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

func (f *fake) Content(ctx context.Context, d archive.Digest, offset int64) (io.ReadCloser, int64, error) {
	if err := f.enter(ctx, "content"); err != nil {
		return nil, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.contents[d]
	if !ok || offset > int64(len(b)) {
		return nil, 0, wire.Errorf(wire.CodeMissing, "no such content")
	}
	body := io.NopCloser(bytes.NewReader(b[offset:]))
	if f.lieBytes != nil {
		body = f.lieBytes(body)
	}
	return body, int64(len(b)), nil
}

func (f *fake) ContentPart(ctx context.Context, d archive.Digest, offset, n int64) (io.ReadCloser, int64, error) {
	body, size, err := f.Content(ctx, d, offset)
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(io.LimitReader(body, n)), size, nil
}

func (f *fake) Blocks(ctx context.Context, d archive.Digest, page uint64) (archive.BlockList, error) {
	if err := f.enter(ctx, "blocks"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.contents[d]
	if !ok || f.noBlocks {
		return nil, wire.Errorf(wire.CodeMissing, "no such path")
	}
	l, err := archive.ReadBlocks(bytes.NewReader(b[min(uint64(len(b)), page*wire.MaxBlocks<<20):]), wire.MaxBlocks)
	if f.lieList != nil {
		l = f.lieList(l)
	}
	return l, err
}

func (f *fake) Have(ctx context.Context, digests []archive.Digest) ([]bool, error) {
	if err := f.enter(ctx, "have"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	have := make([]bool, len(digests))
	for i, d := range digests {
		_, have[i] = f.contents[d]
	}
	return have, nil
}

func (f *fake) PutContents(ctx context.Context, up archive.Uploads, body io.Reader) error {
	if err := f.enter(ctx, "batch"); err != nil {
		return err
	}
	if _, err := up.Verify(f.w.Roster); err != nil {
		return wire.Errorf(wire.CodeDenied, "%v", err)
	}
	for _, c := range up.Contents {
		b := make([]byte, c.Size)
		if _, err := io.ReadFull(&heard{ctx, body, f}, b); err != nil {
			return err
		}
		if archive.DigestOf(b) != c.Digest {
			return wire.Errorf(wire.CodeBadRequest, "other bytes")
		}
		f.set(func() { f.calls["put"]++; f.contents[c.Digest] = b })
	}
	return nil
}

// heard tells the fake of what is read, 32 KiB at a time.
type heard struct {
	ctx context.Context
	r   io.Reader
	f   *fake
}

func (h *heard) Read(p []byte) (int, error) {
	if err := h.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := h.r.Read(p[:min(len(p), 32<<10)])
	if h.f.onRead != nil {
		h.f.onRead(n)
	}
	return n, err
}

func (f *fake) Partial(ctx context.Context, d archive.Digest, _ archive.KeyID) (uint64, error) {
	if err := f.enter(ctx, "partial"); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(len(f.partial[d])), nil
}

func (f *fake) ResumeContent(ctx context.Context, up archive.Upload, offset uint64, body io.Reader) error {
	f.mu.Lock()
	begin := f.partial[up.Digest]
	f.mu.Unlock()
	if uint64(len(begin)) < offset {
		return wire.Errorf(wire.CodeUnavailable, "has %d bytes", len(begin))
	}
	return f.put(ctx, up, int64(up.Size), io.MultiReader(bytes.NewReader(begin[:offset]), &heard{ctx, body, f}))
}

func (f *fake) PutContent(ctx context.Context, up archive.Upload, size int64, body io.Reader) error {
	return f.put(ctx, up, size, &heard{ctx, body, f})
}

func (f *fake) put(ctx context.Context, up archive.Upload, size int64, body io.Reader) error {
	if err := f.enter(ctx, "put"); err != nil {
		return err
	}
	if _, err := up.Verify(f.w.Roster); err != nil {
		return wire.Errorf(wire.CodeDenied, "%v", err)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		f.set(func() { f.partial[up.Digest] = b })
		return err
	}
	if archive.DigestOf(b) != up.Digest || int64(len(b)) != size {
		return wire.Errorf(wire.CodeBadRequest, "other bytes")
	}
	f.set(func() { f.contents[up.Digest] = b })
	return nil
}

func (f *fake) Add(ctx context.Context, s archive.Submission) (wire.Ack, error) {
	if err := f.enter(ctx, "add"); err != nil {
		return wire.Ack{}, err
	}
	if _, err := s.Verify(f.w.Roster); err != nil {
		return wire.Ack{}, wire.Errorf(wire.CodeDenied, "%v", err)
	}
	for _, b := range s.Bindings {
		var ok bool
		if f.set(func() { _, ok = f.contents[b.Digest] }); !ok {
			return wire.Ack{}, wire.Errorf(wire.CodeMissing, "content of %s", b.Name)
		}
	}
	if f.addErr != nil {
		if err := f.addErr(s); err != nil {
			return wire.Ack{}, err
		}
	}
	for _, b := range s.Bindings {
		f.set(func() { f.pending[b.Name] = true })
	}
	if f.onAdd != nil {
		f.onAdd(s)
	}
	return wire.Ack{Status: wire.AckPending, Epoch: f.now().Record.Epoch + 1}, nil
}

func (f *fake) Pending(ctx context.Context, n archive.Name) (wire.PendingState, error) {
	if err := f.enter(ctx, "pending"); err != nil {
		return wire.PendingState{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return wire.PendingState{Pending: f.pending[n]}, nil
}

func (f *fake) Status(ctx context.Context) (wire.Status, error) {
	if err := f.enter(ctx, "status"); err != nil {
		return wire.Status{}, err
	}
	return wire.Status{Replica: f.id, Epoch: f.now().Record.Epoch}, nil
}

func (f *fake) History(ctx context.Context, from archive.Epoch, limit int) (page []wire.SignedRecord, err error) {
	if err := f.enter(ctx, "history"); err != nil {
		return nil, err
	}
	newest := f.now().Record.Epoch
	for e := from; e <= newest && len(page) < limit; e++ {
		x := f.w.Ago(int(f.w.Newest().Record.Epoch - e))
		page = append(page, wire.SignedRecord{Record: string(x.Record.Bytes()), Certificate: x.Certificate.Bytes()})
	}
	if f.lieHistory != nil {
		page = f.lieHistory(page)
	}
	return page, nil
}

func (f *fake) Close() {}

// bed is a world, its four fakes, a wall clock, and a client of them.
type bed struct {
	*forge.World
	fakes  []*fake
	began  time.Time // when the wall clock stood at first
	first  time.Time // what it showed
	Client *Client
}

// newBed returns a bed at epoch 1, one minute after its update phase, whose
// names are bound to their own texts.
func newBed(t *testing.T, dir string, names ...archive.Name) *bed {
	t.Helper()
	b := &bed{World: forge.New(forge.Options{Seed: "client"}), began: time.Now()}
	at := forge.Start.Add(6 * time.Hour)
	b.first = at.Add(time.Minute)
	var bindings []archive.Binding
	for _, n := range names {
		bindings = append(bindings, forge.Bind(n, string(n)))
	}
	b.Advance(at, nil, bindings...)
	for _, id := range b.IDs() {
		f := &fake{w: b.World, id: id, contents: map[archive.Digest][]byte{}, partial: map[archive.Digest][]byte{}, pending: map[archive.Name]bool{}, calls: map[string]int{}}
		for _, n := range names {
			f.contents[archive.DigestOf([]byte(n))] = []byte(n)
		}
		b.fakes = append(b.fakes, f)
	}
	b.Client = b.client(t, dir)
	return b
}

// client returns another client of the same replicas.
func (b *bed) client(t *testing.T, dir string) *Client {
	t.Helper()
	c, err := New(Config{
		Roster: b.Roster, Key: b.Writer, StateDir: dir, Now: b.wall,
		Dial: func(m archive.Replica) Peer { return b.fakes[m.ID-1] },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (b *bed) wall() time.Time { return b.first.Add(time.Since(b.began)) }

// stop makes replicas hang.
func (b *bed) stop(ids ...uint32) {
	for _, id := range ids {
		f := b.fakes[id-1]
		f.set(func() { f.stopped = true })
	}
}

// one gets one name.
func (b *bed) one(t *testing.T, n archive.Name) Result {
	t.Helper()
	res, err := b.Client.Get(t.Context(), n)
	if err != nil {
		t.Fatalf("Get(%s): %v", n, err)
	}
	return res[0]
}

// within fails the test if f takes d or longer.
func within(t *testing.T, d time.Duration, f func()) {
	t.Helper()
	began := time.Now()
	f()
	if took := time.Since(began); took >= d {
		t.Errorf("took %s, want under %s", took, d)
	}
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("error %v, want %v", got, want)
	}
}
