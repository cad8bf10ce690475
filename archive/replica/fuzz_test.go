package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
)

// FuzzItems: what peers put on their boards encodes to what it was parsed from.
func FuzzItems(f *testing.F) {
	f.Add([]byte{})
	f.Add(encodeBatch([]item{{itemHello, make([]byte, 50)}, {itemPrepare, make([]byte, 70)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if items, err := decodeBatch(b); err == nil && !bytes.Equal(encodeBatch(items), b) {
			t.Error("batch: another encoding")
		}
		if v, err := parseBallot(b); err == nil && !bytes.Equal(v.Bytes(), b) {
			t.Error("ballot: another encoding")
		}
		if h, err := parseHello(b); err == nil && !bytes.Equal(h.Bytes(), b) {
			t.Error("hello: another encoding")
		}
		if len(b) < uploadSize {
			return
		}
		if d, u := parseUpload(b); !bytes.Equal(u.appendTo(nil, d), b[:uploadSize]) {
			t.Error("upload: another encoding")
		}
	})
}

// FuzzQuery: what is asked for a proof is bounded.
func FuzzQuery(f *testing.F) {
	f.Add("from=YQ&to=Yg&limit=7")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := url.ParseQuery(s)
		if err != nil {
			return
		}
		g, err := parseRange(v)
		if err == nil && (len(g.From) > archive.MaxName+1 || len(g.To) > archive.MaxName+1 || g.Limit > wire.MaxPage) {
			t.Errorf("%q: unbounded", s)
		}
	})
}

// FuzzHistory: whatever lies in the files of an epoch, and whatever a peer sends
// for it, is the record or refused.
func FuzzHistory(f *testing.F) {
	a := archivetest.NewRoster(f, 4)
	a.Certify(f, files("a", 3))
	good := a.History()[0]
	f.Add([]byte(good.Record), good.Certificate)
	f.Add([]byte{}, []byte{})
	store, err := OpenStore(f.TempDir(), a.Roster)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, record, certificate []byte) {
		peer := &peerOf{history: []wire.SignedRecord{{Record: string(record), Certificate: certificate}}}
		rec, _, err := recordFrom(t.Context(), store, peer, 1, a.Record.Head(), time.Minute)
		if err == nil && rec.Head() != a.Record.Head() {
			t.Error("another record of a peer")
		}
		must(t, errors.Join(os.WriteFile(store.historyPath(1, recordSuffix), record, 0o600),
			os.WriteFile(store.historyPath(1, certificateSuffix), certificate, 0o600)))
		if rec, err := heldRecord(store, 1, a.Record.Head()); err == nil && rec.Head() != a.Record.Head() {
			t.Error("another record of the disk")
		}
	})
}

// FuzzPage: a page of a tree that a peer sends is right or refused, also where
// it claims to be of a newer epoch.
func FuzzPage(f *testing.F) {
	a := archivetest.NewRoster(f, 4)
	a.Certify(f, names("a", 300))
	rec := a.Record
	var m tree.Memory
	truth := make(map[string]string)
	for _, p := range a.Pairs() {
		if err := m.Put(p.Name, p.Val); err != nil {
			f.Fatal(err)
		}
		truth[string(p.Name)] = string(p.Val)
	}
	f.Add([]byte(m.ProveRange(nil, nil, 200)), []byte{}, []byte{})
	f.Add([]byte(m.ProveRange([]byte("a/0100"), []byte("a/0101"), 5)), []byte("a/0100"), []byte("a/0101"))
	store, err := OpenStore(f.TempDir(), a.Roster)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, proof, from, to []byte) {
		if len(to) == 0 {
			to = nil
		}
		peer := &peerOf{proof: proof}
		r := &treeRepair{store: store, rec: rec, log: slog.New(slog.DiscardHandler), timeout: time.Minute}
		pairs, next, err := r.pageOf(t.Context(), peer, from, to, pageLimit)
		if err != nil {
			return
		}
		for _, p := range pairs {
			if truth[string(p.Name)] != string(p.Val) {
				t.Errorf("%q: another value", p.Name)
			}
		}
		if next != nil && bytes.Compare(next, from) <= 0 {
			t.Error("no progress")
		}
	})
}

// FuzzContent: whatever peers send for a content, in whole, in parts, with
// whatever length and list of blocks: it is restored right or not at all.
func FuzzContent(f *testing.F) {
	a := archivetest.NewRoster(f, 4)
	whole := bytes.Repeat([]byte("0123456789abcdef"), 1<<16+10)
	c := archivetest.ContentOf(whole)
	var list []byte
	for i := range c.BlockCount() {
		d := archive.DigestOf(whole[i*archive.BlockSize:][:c.BlockLen(i)])
		list = append(list, d[:]...)
	}
	f.Add(int64(c.Size), whole[archive.BlockSize:], list, uint32(17))
	f.Add(int64(5), []byte("short"), list[:32], uint32(0))
	f.Add(int64(-1), []byte{}, []byte{}, uint32(1))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, size int64, tail, blocks []byte, flip uint32) {
		store, err := OpenStore(filepath.Join(dir, storeDir), a.Roster)
		must(t, err)
		defer store.Close()
		damaged := bytes.Clone(whole)
		damaged[int(flip)%len(damaged)] ^= 1
		must(t, os.MkdirAll(filepath.Dir(archivetest.ContentPath(dir, c.Digest)), 0o700))
		must(t, os.WriteFile(archivetest.ContentPath(dir, c.Digest), damaged, 0o600))
		l, err := archive.ParseBlockList(blocks, 1<<12)
		if err != nil {
			l = nil
		}
		peer := &peerOf{size: size, body: append(bytes.Clone(whole[:archive.BlockSize]), tail...), blocks: l}
		if err := newContentRepair(store, []Source{peer}, slog.New(slog.DiscardHandler)).restore(t.Context(), c); err != nil {
			return
		}
		if !holds(store, whole) {
			t.Error("restored wrong")
		}
	})
}

// FuzzPendingFile: whatever lies where the pending buffer belongs, a buffer is
// made of it that takes submissions, and holds none that is not its own digest's.
func FuzzPendingFile(f *testing.F) {
	a := archivetest.NewRoster(f, 4)
	dir := f.TempDir()
	path := filepath.Join(dir, pendingFile)
	p, err := openPending(path, keepAll)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 40 {
		if err := p.Put(a.Submission(time.Unix(int64(i), 0), files("a", 1+i))); err != nil {
			f.Fatal(err)
		}
	}
	if err := p.close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	extra := a.Submission(time.Unix(1000, 0), files("b", 1))
	f.Add([]byte{0, 0, 0, 10, 1})
	f.Add([]byte{0, 0, 0x10, 8, 2, 0, 0, 0x30, 10, 255})
	f.Fuzz(func(t *testing.T, edits []byte) {
		must(t, os.WriteFile(path, edited(whole, edits), 0o600))
		p, err := openPending(path, keepAll)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		must(t, p.Put(extra))
		found := false
		must(t, p.Each(func(s archive.Submission) error { found = found || s.Digest() == extra.Digest(); return nil }))
		if !found {
			t.Error("a submission that was taken is not there")
		}
	})
}

// edited returns b with bytes changed as edits say: be32 position, value.
func edited(b, edits []byte) []byte {
	b = bytes.Clone(b)
	for ; len(edits) >= 5; edits = edits[5:] {
		b[int(binary.BigEndian.Uint32(edits))%len(b)] = edits[4]
	}
	return b
}

// peerOf is a peer that answers what it is told to.
type peerOf struct {
	history []wire.SignedRecord
	proof   tree.Proof
	size    int64
	body    []byte
	blocks  archive.BlockList
}

func (p *peerOf) ID() uint32 { return 2 }

func (p *peerOf) History(context.Context, archive.Epoch, int) ([]wire.SignedRecord, error) {
	return p.history, nil
}

func (p *peerOf) ProofRange(context.Context, archive.Digest, []byte, []byte, int) (tree.Proof, error) {
	return p.proof, nil
}

func (p *peerOf) Content(context.Context, archive.Digest, int64) (io.ReadCloser, int64, error) {
	return io.NopCloser(bytes.NewReader(p.body)), p.size, nil
}

func (p *peerOf) Blocks(_ context.Context, _ archive.Digest, page uint64) (archive.BlockList, error) {
	return p.blocks, nil
}

func (p *peerOf) ContentPart(_ context.Context, _ archive.Digest, offset, n int64) (io.ReadCloser, int64, error) {
	body := p.body[min(offset, int64(len(p.body))):]
	return io.NopCloser(bytes.NewReader(body)), p.size, nil
}
