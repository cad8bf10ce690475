package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// Ops are single operations, in milliseconds, and those of a session.
type Ops struct {
	Get     Stat `json:"get"`     // a name, proven, in a session of its own
	Content Stat `json:"content"` // and its content fetched
	Add     Stat `json:"add"`     // a name and content, until 2f+1 replicas hold it
	Session Stat `json:"session"` // names a second that one session proves
	Proof   Stat `json:"proof"`   // bytes
	Receipt Stat `json:"receipt"` // bytes
}

// sessionNames is how many names a session looks up.
const sessionNames = 1000

// operations times single Gets and Adds, and binds the latter.
func (r *run) operations(ctx context.Context, res *Result) error {
	o := &res.Ops
	rnd := rand.New(rand.NewPCG(1, 2))
	for k := range r.Ops {
		r.show("Gets and Adds", k, r.Ops)
		if err := r.one(ctx, o, rnd.IntN(r.made)); err != nil {
			return fmt.Errorf("get: %w", err)
		}
	}
	for range r.Runs {
		if err := r.session(ctx, o, rnd); err != nil {
			return fmt.Errorf("session: %w", err)
		}
	}
	if err := r.addOnes(ctx, o); err != nil {
		return fmt.Errorf("add: %w", err)
	}
	r.show("Gets and Adds", r.Ops, r.Ops)
	return nil
}

// one gets a name, then its content.
func (r *run) one(ctx context.Context, o *Ops, i int) error {
	began := time.Now()
	all, err := r.cl.Get(ctx, nameOf(i))
	took := time.Since(began)
	if err != nil {
		return err
	}
	if err := r.checkAll(all, []int{i}); err != nil {
		return err
	}
	o.Get.add(ms(took))
	o.Proof.add(float64(len(all[0].Receipt.Proof)))
	o.Receipt.add(float64(len(all[0].Receipt.Bytes())))
	began = time.Now()
	if err := r.cl.Fetch(ctx, all[0].Entry.Content, io.Discard); err != nil { // who fetches checks the digest
		return err
	}
	o.Content.add(ms(took + time.Since(began)))
	return nil
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

func (r *run) session(ctx context.Context, o *Ops, rnd *rand.Rand) error {
	numbers := rnd.Perm(r.made)[:min(sessionNames, r.made)]
	began := time.Now()
	all, err := r.cl.Get(ctx, names(numbers)...)
	took := time.Since(began)
	if err != nil {
		return err
	}
	o.Session.add(float64(len(all)) / took.Seconds())
	return r.checkAll(all, numbers)
}

// addOnes adds names one by one, and has an update phase bind them.
func (r *run) addOnes(ctx context.Context, o *Ops) error {
	first := r.made
	for k := range r.Ops {
		r.show("single Adds", k, r.Ops)
		began := time.Now()
		done, err := r.cl.Add(ctx, []client.Item{itemOf(r.made)})
		took := time.Since(began)
		switch {
		case err != nil:
			return err
		case done.Status != wire.AckPending || len(done.Bindings) != 1 || done.Bindings[0].Content != contentOf(r.made):
			return fmt.Errorf("%q is %q", nameOf(r.made), done.Status)
		}
		r.made++
		o.Add.add(ms(took))
	}
	if _, err := r.update(ctx); err != nil {
		return err
	}
	var all []int
	for i := first; i < r.made; i++ {
		all = append(all, i)
	}
	_, err := r.lookUp(ctx, all...)
	return err
}
