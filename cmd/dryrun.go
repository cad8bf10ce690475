package cmd

import (
	"context"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// ackNew is the status of what would be added.
const ackNew = "new"

// dryRun tells each what would come of the items, by name.
func dryRun(ctx context.Context, c *client.Client, items []client.Item, each func(client.Outcome)) error {
	if err := c.MayAdd(items); err != nil {
		return err
	}
	names := make(map[archive.Name]*archive.Entry)
	for _, it := range items {
		names[it.Name] = nil
	}
	rec, err := entries(ctx, c, names)
	if err != nil {
		return err
	}
	type one struct {
		client.Item
		client.Outcome
	}
	all := make([]*one, len(items))
	for i, it := range items {
		all[i] = &one{Item: it}
	}
	return inOrder(len(all), eachOf(all), func(o *one) { o.Outcome = wouldBe(ctx, o.Item, names[o.Item.Name], rec) }, func(o *one) error {
		each(o.Outcome)
		return ctx.Err()
	})
}

// wouldBe says what would come of an item whose entry, if it has one, is e.
func wouldBe(ctx context.Context, it client.Item, e *archive.Entry, rec archive.EpochRecord) client.Outcome {
	o := client.Outcome{Binding: archive.Binding{Name: it.Name}, Status: ackNew}
	have, err := hashItem(ctx, it)
	o.Digest, o.Size = have.Digest, have.Size
	switch {
	case err != nil:
		o.Err = pathless(err)
	case e != nil && have.of(e.Content):
		o.Status = wire.AckBound
	case e != nil:
		o.Err = &client.ConflictError{Name: it.Name, Want: o.Content, Bound: *e, Record: rec}
	}
	return o
}

func hashItem(ctx context.Context, it client.Item) (hashed, error) {
	r, err := it.Open()
	if err != nil {
		return hashed{}, err
	}
	defer r.Close()
	return hashOf(ctx, r)
}
