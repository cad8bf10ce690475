package content

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"os"
	"slices"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/disk"
)

// remove takes contents out of the packs.
func (p *packs) remove(all []archive.Digest) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	touched := make(map[uint32]bool)
	for _, d := range all {
		l, err := p.find(d)
		if errors.Is(err, ErrMissing) {
			continue
		}
		if err != nil {
			return err
		}
		if err := p.bury(d, l); err != nil {
			return err
		}
		p.forget(d, l)
		touched[l.pack] = true
	}
	for n := range touched {
		if err := p.sync(n); err != nil {
			return err
		}
	}
	return nil
}

func (p *packs) sync(n uint32) error {
	f, _, err := openRegular(p.path(n), os.O_RDWR)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// tidy rewrites the packs of which half or more is of no use.
func (p *packs) tidy(ctx context.Context) error {
	if err := p.load(); err != nil {
		return err
	}
	for _, n := range p.wasteful() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := p.rewrite(n); err != nil {
			return err
		}
	}
	return nil
}

// wasteful returns the packs of which half or more is of no use.
func (p *packs) wasteful() []uint32 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []uint32
	for n, live := range p.live {
		if info, err := os.Lstat(p.path(n)); err == nil && live <= info.Size()/2 {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// rewrite appends what is of use in a pack to another, and removes the pack when
// that is on the disk. A pack with a member that is damaged stays until a good
// copy has come: then that member is of no use any more. So does one to which
// another store appends.
func (p *packs) rewrite(n uint32) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.curN == n {
		p.leave()
	}
	f, info, err := p.claim(n)
	if err != nil {
		return nil
	}
	defer f.Close()
	if _, err := scan(f, info.Size(), false, func(m found) { p.discover(n, m) }); err != nil {
		return err
	}
	all, ok := p.members(f, n)
	if !ok {
		return nil
	}
	p.least = max(p.least, n+1)
	if err := p.write(all); err != nil {
		return err
	}
	p.mu.Lock()
	delete(p.live, n)
	p.mu.Unlock()
	return errors.Join(os.Remove(p.path(n)), disk.SyncDir(p.dir))
}

// members reads what is of use in a pack, which is at most half of it. It is
// false if some of that cannot be read, or is damaged.
func (p *packs) members(f *os.File, n uint32) ([]Bytes, bool) {
	in := make(map[archive.Digest]location)
	p.mu.RLock()
	for d, l := range p.index {
		if l.pack == n {
			in[d] = l
		}
	}
	p.mu.RUnlock()
	order := slices.SortedFunc(maps.Keys(in), func(a, b archive.Digest) int { return cmp.Compare(in[a].block, in[b].block) })
	var all []Bytes
	for _, d := range order {
		b, err := p.read(f, d, in[d], false)
		if err != nil {
			return nil, false
		}
		all = append(all, Bytes{d, b[block : block+in[d].size]})
	}
	return all, true
}
