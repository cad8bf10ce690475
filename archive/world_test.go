package archive_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/trust"
)

// world is the archive of the vectors: three epochs, replica 4 missing from the
// last, five names.
func world() *forge.World {
	w := forge.New(forge.Options{Seed: "vectors", Prefixes: []string{"docs/", "notes/"}})
	w.Advance(forge.Start.Add(6*time.Hour), nil, forge.Bind("docs/a.txt", "alpha\n"), forge.Bind("notes/n", "note\n"))
	w.Advance(forge.Start.Add(12*time.Hour), nil, forge.Bind("docs/b.txt", "beta\n"), forge.Bind("docs/ö", "umlaut\n"))
	w.Advance(forge.Start.Add(18*time.Hour), []uint32{1, 2, 3}, forge.Bind("docs/empty", ""))
	return w
}

const subject = archive.Name("docs/b.txt")

var testNonce = trust.Nonce(archive.DigestOf([]byte("a nonce for the vectors\n")))

func receiptOf(w *forge.World) archive.Receipt {
	return w.Receipt(w.Newest(), testNonce, subject, 1, 3)
}

func answerOf(w *forge.World) archive.Answer {
	e := w.Newest()
	return w.Answer(2, e, testNonce, e.Tree.Prove([]byte(subject)))
}

func submissionOf(w *forge.World) archive.Submission {
	return w.Submission(forge.Start.Add(7*time.Hour), forge.Bind("docs/b.txt", "beta\n"), forge.Bind("docs/ö", "umlaut\n"))
}

// uploadsOf is the leave to send what submissionOf names.
func uploadsOf(w *forge.World) archive.Uploads {
	var all []archive.Sized
	for _, b := range submissionOf(w).Bindings {
		all = append(all, archive.Sized{Digest: b.Digest, Size: uint32(b.Size)})
	}
	slices.SortFunc(all, func(a, b archive.Sized) int { return bytes.Compare(a.Digest[:], b.Digest[:]) })
	return archive.SignUploads(w.Writer, w.Roster.ID(), all)
}

func TestWorldVerifies(t *testing.T) {
	w := world()
	e, rec, err := receiptOf(w).Verify(w.Roster)
	if err != nil || e.Content != forge.Bind(subject, "beta\n").Content || e.Epoch != 2 || rec.Epoch != 3 {
		t.Errorf("receipt: %+v, epoch %d, %v", e, rec.Epoch, err)
	}
	v, err := answerOf(w).Verify(w.Roster, 2, testNonce)
	if err != nil || !v.Undisturbed() {
		t.Errorf("answer: %v", err)
	}
	wr, err := submissionOf(w).Verify(w.Roster)
	if err != nil || wr.Permitted(submissionOf(w)) != nil {
		t.Errorf("submission: %v", err)
	}
	for _, e := range w.Epochs[1:] {
		if err := e.Certificate.Verify(w.Roster, e.Record); err != nil {
			t.Error(err)
		}
	}
}
