package replica

import (
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/archive"
)

// upload is what is known of a content that came by PUT.
type upload struct {
	writer archive.KeyID
	size   uint64
	blocks archive.Digest
	at     int64 // unix seconds
}

// known is an upload, and the row that it stands in. All are in memory, as the
// places of all packed contents are: a row for each, by digest, would lie
// anywhere in the file, and a batch of them rewrite most of it.
type known struct {
	upload
	batch uint64
}

// reserveUpload charges a writer for contents that are about to come.
func (p *Pending) reserveUpload(w archive.Writer, id archive.KeyID, size uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if have := p.stored[id]; have+size > w.Bytes || have+size < size {
		return fmt.Errorf("%w: %d bytes stored and not bound, %d more, allowed %d", ErrQuota, have, size, w.Bytes)
	}
	p.stored[id] += size
	return nil
}

// chargeUpload adds to what a writer is charged, whatever his quota.
func (p *Pending) chargeUpload(id archive.KeyID, size uint64) { p.releaseUpload(id, -size) }

// releaseUpload takes back a charge.
func (p *Pending) releaseUpload(id archive.KeyID, size uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stored[id] -= size
}

// putUploads remembers contents that have come from one writer and are charged
// to him. Calls that come together share an fsync. The charge for those that were
// known before is taken back.
func (p *Pending) putUploads(id archive.KeyID, all map[archive.Digest]upload) error {
	x := &put{uploads: all, done: make(chan struct{})}
	p.mu.Lock()
	p.queue = append(p.queue, x)
	p.mu.Unlock()
	p.await(x)
	if x.err == nil {
		p.releaseUpload(id, x.again)
	}
	return x.err
}

// writeUploads writes those that are not known yet in one row, and makes them
// known.
func (p *Pending) writeUploads(tx *bbolt.Tx, x *put) error {
	b := tx.Bucket(uploadsBucket)
	n, err := b.NextSequence()
	if err != nil {
		return err
	}
	row := p.learn(x, n)
	if len(row) == 0 {
		return nil
	}
	return b.Put(batchKey(n), row)
}

// learn makes the uploads of x known that are not, and returns their row.
func (p *Pending) learn(x *put, batch uint64) (row []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x.again, x.learnt = 0, nil
	for d, u := range x.uploads {
		if _, ok := p.uploads[d]; ok {
			x.again += u.size
			continue
		}
		p.uploads[d] = known{u, batch}
		x.learnt = append(x.learnt, d)
		row = u.appendTo(row, d)
	}
	return row
}

// unlearn takes back what x made known. The caller holds mu.
func (p *Pending) unlearn(x *put) {
	for _, d := range x.learnt {
		delete(p.uploads, d)
	}
}

// uploadsOf returns what is known of those contents of a submission that were
// uploaded.
func (p *Pending) uploadsOf(sub archive.Submission) map[archive.Digest]upload {
	all := make(map[archive.Digest]upload, len(sub.Bindings))
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range sub.Bindings {
		if u, ok := p.uploads[x.Digest]; ok {
			all[x.Digest] = u.upload
		}
	}
	return all
}

// allUploads returns what is known of all contents that were uploaded.
func (p *Pending) allUploads() map[archive.Digest]upload {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[archive.Digest]upload, len(p.uploads))
	for d, u := range p.uploads {
		all[d] = u.upload
	}
	return all
}

// readUploads calls fn with what the file says of uploads, and the number of the
// row. What is no row is left out.
func (p *Pending) readUploads(fn func(batch uint64, d archive.Digest, u upload)) error {
	return p.each(uploadsBucket, func(k, v []byte) error {
		if len(k) != 8 || len(v)%uploadSize != 0 {
			return nil
		}
		for b := range slices.Chunk(v, uploadSize) {
			d, u := parseUpload(b)
			fn(binary.BigEndian.Uint64(k), d, u)
		}
		return nil
	})
}

// dropUploads forgets contents that are bound, or gone.
func (p *Pending) dropUploads(all map[archive.Digest]upload) error {
	err := p.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(uploadsBucket)
		for n, row := range p.without(all) {
			put := func() error { return b.Put(batchKey(n), row) }
			if len(row) == 0 {
				put = func() error { return b.Delete(batchKey(n)) }
			}
			if err := put(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop uploads: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, u := range all {
		p.stored[u.writer] -= u.size
		delete(p.uploads, d)
	}
	return nil
}

// without returns the rows in which some uploads stand, as they are without
// those.
func (p *Pending) without(some map[archive.Digest]upload) map[uint64][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	rows := make(map[uint64][]byte)
	for d := range some {
		if u, ok := p.uploads[d]; ok {
			rows[u.batch] = nil
		}
	}
	for d, u := range p.uploads {
		row, touched := rows[u.batch]
		if _, gone := some[d]; touched && !gone {
			rows[u.batch] = u.appendTo(row, d)
		}
	}
	return rows
}

func batchKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// uploadSize is how long one upload is in a row, in bytes.
const uploadSize = 32 + 32 + 8 + 32 + 8

// appendTo appends content || writer || be64 size || block root || be64 time.
func (u upload) appendTo(b []byte, d archive.Digest) []byte {
	b = append(append(b, d[:]...), u.writer[:]...)
	b = binary.BigEndian.AppendUint64(b, u.size)
	b = append(b, u.blocks[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(u.at))
}

// parseUpload parses the uploadSize bytes that appendTo appends.
func parseUpload(b []byte) (d archive.Digest, u upload) {
	copy(d[:], b)
	copy(u.writer[:], b[32:])
	u.size = binary.BigEndian.Uint64(b[64:])
	copy(u.blocks[:], b[72:])
	u.at = int64(binary.BigEndian.Uint64(b[104:]))
	return d, u
}
