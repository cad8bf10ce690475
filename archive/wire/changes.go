package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/url"
	"strconv"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree"
)

// PathChanges is the endpoint of Client.Changes.
const PathChanges = "/v1/changes"

// A page of changes ends after MaxPage pairs, or when they reach
// MaxChanges/2 bytes; a replica looks at no more than MaxScan names for one.
const (
	MaxChanges = 2 << 20
	MaxScan    = 1 << 18
)

// Changes are the names bound since an epoch, in order, one page of them. Nothing
// proves that they are all: who adds them to what he holds compares the root.
type Changes struct {
	Next  []byte // where the next page begins; empty: this is the last
	Pairs []tree.Pair
}

// Bytes returns the encoding:
//
//	be16 len(next) || next || { be16 len(name) || be16 len(value) || name || value }
func (c Changes) Bytes() []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(c.Next)))
	b = append(b, c.Next...)
	for _, p := range c.Pairs {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.Name)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.Val)))
		b = append(append(b, p.Name...), p.Val...)
	}
	return b
}

// ParseChanges parses what Bytes returns, and checks that the names strictly
// increase, from `from` on and below Next.
func ParseChanges(b, from []byte) (c Changes, err error) {
	if len(b) > MaxChanges {
		return c, fmt.Errorf("changes: %w: %d bytes", archive.ErrFormat, len(b))
	}
	d := changesDecoder{rest: b}
	c.Next = d.take(d.u16())
	if len(c.Next) > archive.MaxName+1 {
		return c, fmt.Errorf("changes: %w: next", archive.ErrFormat)
	}
	for least := from; len(d.rest) > 0 && !d.bad; {
		n, v := d.u16(), d.u16()
		p := tree.Pair{Name: d.take(n), Val: d.take(v)}
		if tree.CheckPair(p.Name, p.Val) != nil || bytes.Compare(p.Name, least) < 0 || len(c.Pairs) == MaxPage {
			d.bad = true
		}
		least = append(bytes.Clone(p.Name), 0)
		c.Pairs = append(c.Pairs, p)
	}
	if last := len(c.Pairs) - 1; len(c.Next) > 0 && last >= 0 && bytes.Compare(c.Next, c.Pairs[last].Name) <= 0 {
		d.bad = true
	}
	if d.bad || len(c.Next) > 0 && bytes.Compare(c.Next, from) <= 0 {
		return Changes{}, fmt.Errorf("changes: %w", archive.ErrFormat)
	}
	return c, nil
}

// changesDecoder reads a body; once bad it reads nothing more.
type changesDecoder struct {
	rest []byte
	bad  bool
}

func (d *changesDecoder) take(n int) []byte {
	if d.bad = d.bad || n > len(d.rest); d.bad {
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *changesDecoder) u16() int {
	b := d.take(2)
	if b == nil {
		return 0
	}
	return int(binary.BigEndian.Uint16(b))
}

// Changes asks for a page of the names from `from` on that were bound after
// epoch since, under the replica's current head.
func (c *Client) Changes(ctx context.Context, head archive.Digest, since archive.Epoch, from []byte) (Changes, error) {
	q := url.Values{"head": {head.String()}, "since": {strconv.FormatUint(uint64(since), 10)}, "from": {EncodeBytes(from)}}
	b, err := c.get(ctx, PathChanges+"?"+q.Encode(), MaxChanges)
	if err != nil {
		return Changes{}, c.wrap("changes", err)
	}
	page, err := ParseChanges(b, from)
	return page, c.wrap("changes", err)
}
