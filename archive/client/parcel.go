package client

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// parcel is contents in memory that go to replicas together.
type parcel struct {
	c        *Client
	from     slabs
	buf      []byte // nil: none taken yet
	used     int    // bytes of buf that contents fill
	fresh    int    // bytes behind that which are read and not kept yet
	kept     uint64 // bytes of all contents kept, of equal ones too
	contents map[archive.Digest][]byte
	refs     atomic.Int32 // lanes that have it
}

func (c *Client) newParcel(from slabs) *parcel {
	p := &parcel{c: c, from: from, contents: make(map[archive.Digest][]byte)}
	p.refs.Store(1)
	return p
}

// take gets the parcel a slab.
func (p *parcel) take(ctx context.Context, s *sending) (err error) {
	if p.buf, err = s.slab(ctx); err == nil && p.buf == nil {
		p.buf = make([]byte, slabSize)
	}
	return err
}

// keep makes the fresh bytes a content of the parcel.
func (p *parcel) keep(x archive.Content) {
	p.kept += x.Size
	if p.contents[x.Digest] == nil {
		p.contents[x.Digest] = p.buf[p.used : p.used+p.fresh : p.used+p.fresh]
		p.used += p.fresh
	}
	p.fresh = 0
}

// lanes says how many will release the parcel.
func (p *parcel) lanes(n int) {
	p.refs.Add(int32(n))
	p.release()
}

// release gives the slab back when nobody has the parcel any more.
func (p *parcel) release() {
	if p.refs.Add(-1) == 0 && p.buf != nil {
		p.from <- p.buf
	}
}

// send brings those contents to a replica that it does not hold.
func (p *parcel) send(ctx context.Context, l *lane, idle *idle) error {
	digests := p.digests()
	have, err := l.r.peer.Have(ctx, digests)
	if err != nil {
		return err
	}
	idle.moved(0)
	missing := digests[:0]
	for i, d := range digests {
		if !have[i] {
			missing = append(missing, d)
		}
	}
	return p.put(ctx, l.r, missing, idle)
}

func (p *parcel) bytes() uint64 { return p.kept }

func (p *parcel) digests() []archive.Digest {
	all := make([]archive.Digest, 0, len(p.contents))
	for d := range p.contents {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b archive.Digest) int { return bytes.Compare(a[:], b[:]) })
	return all
}

// put sends contents under one signature.
func (p *parcel) put(ctx context.Context, r *replica, digests []archive.Digest, idle *idle) error {
	if len(digests) == 0 {
		return nil
	}
	var list []archive.Sized
	var bodies []io.Reader
	for _, d := range digests {
		b := p.contents[d]
		list = append(list, archive.Sized{Digest: d, Size: uint32(len(b))})
		bodies = append(bodies, bytes.NewReader(b))
	}
	up := archive.SignUploads(p.c.Key, p.c.Roster.ID(), list)
	body := &moving{r: io.MultiReader(bodies...), size: up.Size(), moved: func(done uint64, end bool) {
		idle.moved(syncTime(done, end))
	}}
	return r.peer.PutContents(ctx, up, body)
}

// addAgain reads an item that was read before, for one replica, and sends the
// parcel first if it is full.
func (p *parcel) addAgain(ctx context.Context, r *replica, it Item, idle *idle) error {
	if p.used+int(it.content.Size) > slabSize {
		if err := p.sendAll(ctx, r, idle); err != nil {
			return err
		}
	}
	if err := p.borrow(ctx, idle); err != nil {
		return err
	}
	src, err := openSource(it)
	if err != nil {
		return err
	}
	defer src.close()
	n := int(it.content.Size)
	_, err = io.ReadFull(&ctxReader{ctx, src}, p.buf[p.used:p.used+n])
	if err == nil {
		_, err = src.Read(nil) // to the end
	}
	if own := src.failed(); own != nil {
		return own
	}
	if err != nil && err != io.EOF {
		return err
	}
	idle.moved(0)
	p.fresh = n
	p.keep(it.content)
	return nil
}

// borrow takes a slab of those that are spare. The replica has one when it has got
// what another holds for it, which is not to be idle.
func (p *parcel) borrow(ctx context.Context, idle *idle) error {
	if p.buf != nil {
		return nil
	}
	tick := time.NewTicker(max(idle.limit/4, time.Millisecond))
	defer tick.Stop()
	for taken := false; !taken; {
		select {
		case p.buf = <-p.from:
			taken = true
		case <-tick.C:
			idle.moved(0)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if p.buf == nil {
		p.buf = make([]byte, slabSize)
	}
	return nil
}

// sendAll sends all of the parcel to one replica and empties it.
func (p *parcel) sendAll(ctx context.Context, r *replica, idle *idle) error {
	err := p.put(ctx, r, p.digests(), idle)
	clear(p.contents)
	p.used = 0
	return err
}
