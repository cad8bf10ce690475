package archive_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
)

var update = flag.Bool("update", false, "write the vectors instead of comparing them")

// The vectors in testdata are what the code makes of fixed keys, and each file
// that holds a value is parsed and verified again.
func TestVectors(t *testing.T) {
	w := world()
	for name, want := range vectors(t, w) {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the code makes", name)
		}
	}
}

func vectors(t *testing.T, w *forge.World) map[string][]byte {
	answer, err := archive.EncodeJSON(answerOf(w))
	if err != nil {
		t.Fatal(err)
	}
	e, sub := w.Newest(), submissionOf(w)
	up := archive.SignUpload(w.Writer, w.Roster.ID(), sub.Bindings[0].Content)
	var words []byte
	for _, id := range w.IDs() {
		words = append(words, archive.Countersign(w.Key("tls", id), id, w.Roster).String()+"\n"...)
	}
	return map[string][]byte{
		"countersignatures.txt": words,
		"roster.json":           w.Roster.Bytes(),
		"genesis.txt":           w.Epochs[0].Record.Bytes(),
		"record.txt":            e.Record.Bytes(),
		"certificate.bin":       e.Certificate.Bytes(),
		"answer.json":           answer,
		"receipt.json":          receiptOf(w).Bytes(),
		"submission.bin":        sub.Bytes(),
		"upload.bin":            up.Bytes(),
		"uploads.bin":           uploadsOf(w).Bytes(),
		"values.txt":            values(w),
	}
}

// values lists digests and small encodings, one a line.
func values(w *forge.World) []byte {
	var b bytes.Buffer
	say := func(name string, v any) { fmt.Fprintf(&b, "%-34s %v\n", name, v) }
	e := w.Newest()
	head := e.Record.Head()
	entry, _, _ := receiptOf(w).Verify(w.Roster)
	say("archive", w.Roster.ID())
	say("genesis head", w.Epochs[0].Record.Head())
	say("head", head)
	say("instance, tick 1", e.Record.InstanceAt(1))
	say("instance, tick 2", e.Record.InstanceAt(2))
	say("prepare nonce, tick 1", hex.EncodeToString(nonce(archive.PrepareNonce(e.Record.InstanceAt(1), head))))
	say("commit nonce, tick 1", hex.EncodeToString(nonce(archive.CommitNonce(e.Record.InstanceAt(1), head))))
	say("hello nonce, 1 to 2", hex.EncodeToString(nonce(archive.HelloNonce(w.Roster.ID(), 1, 2, testNonce))))
	say("submission", submissionOf(w).Digest())
	say("entry of "+string(subject), hex.EncodeToString(entry.Bytes()))
	for _, n := range []int{0, 1, 64, archive.BlockSize, archive.BlockSize + 1, 3*archive.BlockSize + 5} {
		c := hashOf(strings.Repeat("b", n))
		say(fmt.Sprintf("content of %d x b", n), fmt.Sprint(c.Digest, " ", c.Blocks))
	}
	return b.Bytes()
}

func nonce[T ~[32]byte](n T) []byte { return n[:] }

func hashOf(s string) archive.Content {
	h := archive.NewContentHasher()
	h.Write([]byte(s))
	return h.Content()
}

// What stands in testdata is readable by itself, without the keys.
func TestVectorsVerify(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	r, err := archive.ParseRoster(read("roster.json"))
	if err != nil {
		t.Fatal(err)
	}
	rc, err := archive.ParseReceipt(read("receipt.json"))
	if err == nil {
		_, _, err = rc.Verify(r)
	}
	check(t, "receipt", err)
	_, _, err = archive.VerifyRecord(r, read("record.txt"), read("certificate.bin"))
	check(t, "record", err)
	var a archive.Answer
	err = archive.DecodeJSON(read("answer.json"), &a)
	if err == nil {
		_, err = a.Verify(r, 2, testNonce)
	}
	check(t, "answer", err)
	s, err := archive.ParseSubmission(read("submission.bin"))
	if err == nil {
		_, err = s.Verify(r)
	}
	check(t, "submission", err)
	up, err := archive.ParseUpload(read("upload.bin"))
	if err == nil {
		_, err = up.Verify(r)
	}
	check(t, "upload", err)
	ups, err := archive.ParseUploads(read("uploads.bin"))
	if err == nil {
		_, err = ups.Verify(r)
	}
	check(t, "uploads", err)
	words, err := archive.ParseCountersignatures(read("countersignatures.txt"))
	if err == nil {
		_, err = r.Uncountersigned(words)
	}
	check(t, "countersignatures", err)
	if len(words) != r.N() {
		t.Errorf("%d countersignatures", len(words))
	}
	if g := archive.Genesis(r); !bytes.Equal(g.Bytes(), read("genesis.txt")) {
		t.Error("genesis record is another")
	}
}

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// The block root is the one of RFC 6962, computed the slow way.
func TestBlockRoot(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9} {
		content := strings.Repeat("x", max(0, n*archive.BlockSize-7))
		if got, want := hashOf(content).Blocks, blockRoot(blocksOf(content)); got != want {
			t.Errorf("%d blocks: root %s, want %s", n, got, want)
		}
	}
}

func blocksOf(s string) (leaves []archive.Digest) {
	for len(s) > 0 {
		n := min(len(s), archive.BlockSize)
		sum := archive.DigestOf([]byte(s[:n]))
		leaves = append(leaves, archive.DigestOf(append([]byte{0}, sum[:]...)))
		s = s[n:]
	}
	return leaves
}

func blockRoot(leaves []archive.Digest) archive.Digest {
	switch len(leaves) {
	case 0:
		return archive.DigestOf(nil)
	case 1:
		return leaves[0]
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	l, r := blockRoot(leaves[:k]), blockRoot(leaves[k:])
	return archive.DigestOf(append(append([]byte{1}, l[:]...), r[:]...))
}
