package replica

import (
	"encoding/binary"
	"fmt"

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
	x := &put{uploads: all}
	p.mu.Lock()
	p.queue = append(p.queue, x)
	p.mu.Unlock()
	p.commit.Lock()
	p.flush()
	p.commit.Unlock()
	if x.err == nil {
		p.releaseUpload(id, x.again)
	}
	return x.err
}

// uploadsOf returns what is known of those contents of a submission that were
// uploaded.
func (p *Pending) uploadsOf(sub archive.Submission) map[archive.Digest]upload {
	all := make(map[archive.Digest]upload, len(sub.Bindings))
	p.view(func(tx *bbolt.Tx) error { // what cannot be read is not known
		b := tx.Bucket(uploadsBucket)
		for _, x := range sub.Bindings {
			if u, ok := parseUpload(b.Get(x.Digest[:])); ok {
				all[x.Digest] = u
			}
		}
		return nil
	})
	return all
}

func (p *Pending) eachUpload(fn func(archive.Digest, upload) error) error {
	return p.each(uploadsBucket, func(d archive.Digest, v []byte) error {
		u, ok := parseUpload(v)
		if !ok {
			return nil
		}
		return fn(d, u)
	})
}

// dropUploads forgets contents that are bound, or gone.
func (p *Pending) dropUploads(all map[archive.Digest]upload) error {
	err := p.update(func(tx *bbolt.Tx) error {
		for d := range all {
			if err := tx.Bucket(uploadsBucket).Delete(d[:]); err != nil {
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
	for _, u := range all {
		p.stored[u.writer] -= u.size
	}
	return nil
}

const uploadRow = 32 + 8 + 32 + 8

// bytes returns writer || be64 size || block root || be64 time.
func (u upload) bytes() []byte {
	b := append(make([]byte, 0, uploadRow), u.writer[:]...)
	b = binary.BigEndian.AppendUint64(b, u.size)
	b = append(b, u.blocks[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(u.at))
}

func parseUpload(b []byte) (u upload, ok bool) {
	if len(b) != uploadRow {
		return upload{}, false
	}
	copy(u.writer[:], b)
	u.size = binary.BigEndian.Uint64(b[32:])
	copy(u.blocks[:], b[40:])
	u.at = int64(binary.BigEndian.Uint64(b[72:]))
	return u, true
}
