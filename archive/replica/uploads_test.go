package replica

import (
	"encoding/binary"
	"maps"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

// uploadsFrom makes n uploads of one writer, of 10 bytes each, numbered from lo.
func uploadsFrom(lo, n int) map[archive.Digest]upload {
	all := make(map[archive.Digest]upload, n)
	for i := lo; i < lo+n; i++ {
		d := archive.DigestOf(binary.BigEndian.AppendUint64(nil, uint64(i)))
		all[d] = upload{writer: archive.KeyID{1}, size: 10, blocks: d, at: int64(i)}
	}
	return all
}

// What is known of uploads, and charged for them, is the same in the next process:
// each once, however often it came, and none that was dropped, whether all of a
// batch were or some.
func TestUploadsKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), pendingFile)
	p := openBuffer(t, path)
	want := make(map[archive.Digest]upload)
	put := func(all map[archive.Digest]upload) {
		t.Helper()
		p.chargeUpload(archive.KeyID{1}, uint64(len(all))*10)
		must(t, p.putUploads(archive.KeyID{1}, all))
		maps.Copy(want, all)
	}
	drop := func(all map[archive.Digest]upload) {
		t.Helper()
		must(t, p.dropUploads(all))
		for d := range all {
			delete(want, d)
		}
	}
	check := func(when string) {
		t.Helper()
		if got := p.allUploads(); !maps.Equal(got, want) {
			t.Errorf("%s: %d uploads, want %d", when, len(got), len(want))
		}
		if got := p.stored[archive.KeyID{1}]; got != uint64(len(want))*10 {
			t.Errorf("%s: charged for %d bytes, want %d", when, got, len(want)*10)
		}
	}
	put(uploadsFrom(0, 100))
	put(uploadsFrom(50, 100)) // half of them again
	put(uploadsFrom(150, archive.MaxUploads))
	put(uploadsFrom(5000, 1))
	check("put")
	drop(uploadsFrom(60, 10)) // of those that came twice
	p.close()
	p = openBuffer(t, path)
	check("some dropped")
	put(uploadsFrom(60, 10))
	drop(uploadsFrom(0, 100)) // whole batches
	drop(uploadsFrom(120, 1))
	drop(uploadsFrom(149, 3)) // of two batches
	check("dropped")
	for range 2 {
		p.close()
		p = openBuffer(t, path)
		check("in the next process")
	}
	put(uploadsFrom(0, 10)) // dropped before
	drop(uploadsFrom(200, 5))
	p.close()
	p = openBuffer(t, path)
	defer p.close()
	check("in the end")
}

// A batch of uploads costs what it is long, however many there are: rows by digest
// would each lie on another page, and all of those be written again. So it is also
// where a new process takes them over.
func TestUploadsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), pendingFile)
	p := openBuffer(t, path)
	const n = 24
	for i := range n {
		must(t, p.putUploads(archive.KeyID{1}, uploadsFrom(i*archive.MaxUploads, archive.MaxUploads)))
	}
	const row = archive.MaxUploads * uploadSize
	written := func(p *Pending) int64 { s := p.db.Stats(); return s.TxStats.GetPageAlloc() }
	if got := written(p); got > 5*n*row {
		t.Errorf("%d bytes of pages written for %d batches of %d", got, n, row)
	}
	p.close()
	p = openBuffer(t, path)
	defer p.close()
	must(t, p.each(uploadsBucket, func(_, v []byte) error {
		if len(v) > row {
			t.Errorf("a row of %d bytes", len(v))
		}
		return nil
	}))
	if got := written(p); got > 5*n*row || len(p.allUploads()) != n*archive.MaxUploads {
		t.Errorf("%d bytes of pages written for %d uploads that were taken over", got, len(p.allUploads()))
	}
}
