package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// perContent is how many names are bound to one content: the talk's archive names
// what is stored elsewhere, so that names are the load, not contents.
const perContent = 1000

// nameOf is the i-th name, 38 bytes. Names come in no order.
func nameOf(i int) archive.Name {
	d := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	return archive.Name(fmt.Sprintf("bench/%x", d[:16]))
}

// textOf is what the i-th name is bound to.
func textOf(i int) []byte { return fmt.Appendf(nil, "content %d of a benchmark\n", i/perContent) }

func contentOf(i int) archive.Content {
	h := archive.NewContentHasher()
	h.Write(textOf(i)) // never fails
	return h.Content()
}

func itemOf(i int) client.Item {
	return client.Item{Name: nameOf(i), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(textOf(i))), nil
	}}
}

// add adds the next n names and checks that 2f+1 replicas have acknowledged each.
func (r *run) add(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	items := make([]client.Item, n)
	for i := range items {
		items[i] = itemOf(r.made + i)
	}
	pending := 0
	var failed error
	_, err := r.cl.AddEach(ctx, items, func(o client.Outcome) {
		if o.Err == nil && o.Status == wire.AckPending {
			pending++
			return
		}
		failed = errors.Join(o.Err, fmt.Errorf("%q is %q", o.Name, o.Status))
	})
	if err == nil && pending != n {
		err = fmt.Errorf("%d of %d names pending: %w", pending, n, failed)
	}
	r.made += n
	return err
}

// lookUp gets names by their numbers, in one session, and checks what they are
// bound to, under which head, and the receipt of each.
func (r *run) lookUp(ctx context.Context, numbers ...int) ([]client.Result, error) {
	all, err := r.cl.Get(ctx, names(numbers)...)
	if err != nil {
		return nil, err
	}
	return all, r.checkAll(all, numbers)
}

func names(numbers []int) (all []archive.Name) {
	for _, i := range numbers {
		all = append(all, nameOf(i))
	}
	return all
}

func (r *run) checkAll(all []client.Result, numbers []int) error {
	for k, i := range numbers {
		if err := r.check(all[k], i); err != nil {
			return fmt.Errorf("%q: %w", all[k].Name, err)
		}
	}
	return nil
}

func (r *run) check(res client.Result, i int) error {
	if res.Err != nil {
		return res.Err
	}
	entry, rec, err := res.Receipt.Verify(r.Roster)
	switch {
	case err != nil:
		return err
	case entry.Content != contentOf(i) || res.Entry != entry:
		return fmt.Errorf("%w: bound to %s", archive.ErrIntegrity, entry.Digest)
	case rec.Head() != r.rec.head || rec.Names != r.rec.names:
		return fmt.Errorf("%w: proven in epoch %d of %d names, want epoch %d of %d", archive.ErrIntegrity, rec.Epoch, rec.Names, r.rec.epoch, r.rec.names)
	}
	return nil
}

// absent checks that a name which was never added is proven absent.
func (r *run) absent(ctx context.Context) error {
	all, err := r.cl.Get(ctx, "bench/never")
	if err != nil {
		return err
	}
	if !errors.As(all[0].Err, new(*client.AbsentError)) {
		return fmt.Errorf("%w: %q is not proven absent: %v", archive.ErrIntegrity, all[0].Name, all[0].Err)
	}
	return nil
}
