package replica

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// sieve says which submissions a new file takes over from the old.
type sieve func(archive.Submission) (keep bool, err error)

func keepAll(archive.Submission) (bool, error) { return true, nil }

// renewed makes a new file from the rows of the one at path that are to be kept,
// puts it in its place and returns it open.
func renewed(path string, keep sieve) (*Pending, error) {
	fresh := path + ".new"
	if err := errors.Join(evict(path), os.RemoveAll(fresh)); err != nil {
		return nil, err
	}
	p, err := loaded(fresh)
	if err != nil {
		return nil, err
	}
	p.db.NoSync, p.copying = true, true // nobody relies on it yet
	damage, err := p.takeRows(path, keep)
	p.db.NoSync, p.copying = false, false
	if err == nil {
		err = p.db.Sync()
	}
	if err == nil {
		err = p.sound()
	}
	if err == nil && damage != nil {
		err = aside(path)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		p.closeFile()
		os.Remove(fresh)
		return nil, full(err)
	}
	p.damage = damage
	return p, nil
}

// aside keeps the file at path under another name too. It is not moved: a crash
// before another takes its place must not leave nothing there.
func aside(path string) error {
	damaged := path + ".damaged"
	if err := os.RemoveAll(damaged); err != nil {
		return err
	}
	return os.Link(path, damaged)
}

// takeRows copies the rows of another buffer that vouch for themselves: the key
// of a submission is its digest. damage says why not all could be read; err, why
// they could not be written, or nobody can say what the file holds: without a
// descriptor or the right to read, a good one must not pass for a damaged one.
func (p *Pending) takeRows(path string, keep sieve) (damage, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	readable, damage := boltstore.CheckFile(path)
	if damage != nil && !errors.Is(damage, boltstore.ErrDamaged) {
		return nil, damage
	}
	if readable {
		lost, err := p.takeReadable(path, keep)
		if err != nil {
			return nil, err
		}
		damage = errors.Join(damage, lost)
	}
	if damage != nil {
		err = p.salvage(f, keep)
	}
	return damage, err
}

// takeReadable copies what bbolt finds in a file, which it could open just before.
func (p *Pending) takeReadable(path string, keep sieve) (damage, err error) {
	old, err := openGuarded(path, true)
	if err != nil {
		return nil, err
	}
	defer old.closeFile()
	damage = old.Each(func(s archive.Submission) error {
		err = p.copy(s, keep)
		return err
	})
	if err == nil {
		err = p.flush()
	}
	if err != nil {
		return nil, err
	}
	lost, err := p.takeUploads(old)
	return errors.Join(damage, lost), err
}

// salvage copies the submissions that lie anywhere in a damaged file. Some may
// have been dropped before; they will be again.
func (p *Pending) salvage(f *os.File, keep sieve) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	err = boltstore.Salvage(f, info.Size(), func(key, val []byte) error {
		d := archive.DigestOf(val)
		if !bytes.Equal(key, d[:]) {
			return nil
		}
		s, err := archive.ParseSubmission(slices.Clone(val))
		if err != nil {
			return nil
		}
		return p.copy(s, keep)
	})
	return errors.Join(err, p.flush())
}

// copy takes over a submission that is to be kept, for the next flush.
func (p *Pending) copy(s archive.Submission, keep sieve) error {
	kept, err := keep(s)
	if err != nil || !kept {
		return err
	}
	_, err = p.enqueue(&put{sub: s}, nil)
	if err == nil && len(p.queue) >= copyBatch {
		err = p.flush()
	}
	return err
}

// copyBatch is how many submissions are copied in one transaction.
const copyBatch = 256

// takeUploads copies what is known of uploads. It is only of use, not needed.
func (p *Pending) takeUploads(old *Pending) (damage, err error) {
	x := &put{uploads: make(map[archive.Digest]upload)}
	take := func() error {
		err := p.update(func(tx *bbolt.Tx) error { return p.writeUploads(tx, x) })
		clear(x.uploads)
		return err
	}
	damage = old.readUploads(func(_ uint64, d archive.Digest, u upload) {
		if _, twice := p.uploads[d]; twice || err != nil {
			return
		}
		p.stored[u.writer] += u.size
		if x.uploads[d] = u; len(x.uploads) == archive.MaxUploads {
			err = take()
		}
	})
	if err == nil {
		err = take()
	}
	return damage, err
}
