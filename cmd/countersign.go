package cmd

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/spf13/cobra"
)

// countersignFile keeps a replica's countersignature of its roster.
const countersignFile = "roster.countersignature"

// countersign keeps the replica's word for r, and returns it.
func (m member) countersign(r *archive.Roster) (archive.Countersignature, error) {
	key, err := loadKey(m.path(serviceKey))
	if err != nil {
		return archive.Countersignature{}, err
	}
	c := archive.Countersign(key, m.ID, r)
	return c, writeFile(m.path(countersignFile), []byte(c.String()+"\n"), 0o644)
}

// countersigned checks that the replica has given its word for r.
func (m member) countersigned(r *archive.Roster) error {
	b, err := readFile(m.path(countersignFile), archive.MaxCountersignatures)
	if err == nil {
		err = m.checkWord(b, r)
	}
	if err != nil {
		err = usagef("%w: replica %d has not countersigned %s: %w", archive.ErrRoster, m.ID, quote(m.path(rosterFile)), err)
		return withHint(err, "bonafide init countersign --dir %s --roster FILE does, if it should serve this archive", quote(m.dir))
	}
	return nil
}

func (m member) checkWord(b []byte, r *archive.Roster) error {
	all, err := archive.ParseCountersignatures(b)
	if err != nil {
		return err
	}
	if len(all) != 1 || all[0].Replica != m.ID {
		return errors.New("not its countersignature")
	}
	return all[0].Verify(r)
}

// sameEntry checks that the roster says of the replica what the replica says.
func (m member) sameEntry(r *archive.Roster) error {
	e, err := m.enrolment()
	if err != nil {
		return err
	}
	if entry, _ := r.Replica(m.ID); !reflect.DeepEqual(entry, e.Replica) {
		return usagef("%w: the entry of replica %d is not the one in %s", archive.ErrRoster, m.ID, quote(m.path(entryFile)))
	}
	return nil
}

func (a *app) initCountersignCommand() *cobra.Command {
	var dir, roster string
	c := &cobra.Command{
		Use:   "countersign --dir DIR --roster FILE",
		Short: "Give a replica its roster, and print its word for it",
		Long: `Give the replica in a directory the roster that it is to serve, and print its
countersignature: its service key's signature of the roster's digest. It does so
only if the roster holds the replica's own entry as bonafide init replica made
it, and for one roster only. bonafide serve --roster does the same.

The countersignatures of all replicas, one after the other in one file, show
anyone that all of them serve this roster: bonafide init members checks them.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.initCountersign(dir, roster) },
	}
	c.Flags().StringVar(&dir, "dir", "", "`directory` of the replica")
	c.Flags().StringVar(&roster, "roster", "", "`file` with the roster")
	require(c, "dir", "roster")
	return c
}

func (a *app) initCountersign(dir, roster string) error {
	m, err := openMember(dir)
	if err != nil {
		return err
	}
	r, err := loadRoster(roster)
	if err != nil {
		return err
	}
	if err := m.adopt(r); err != nil {
		return err
	}
	c, err := m.countersign(r)
	if err != nil {
		return err
	}
	a.say("replica %d serves archive %s (%s)", m.ID, quote(r.Name), r.ID())
	return a.line(a.out, c.String())
}

func (a *app) initMembersCommand() *cobra.Command {
	var roster string
	c := &cobra.Command{
		Use:   "members --roster FILE COUNTERSIGNATURE-FILE...",
		Short: "Check that all members have countersigned a roster",
		Long: `Check the countersignatures that the replicas of a roster printed, and list the
replicas. Exit status 3 if some are missing, 5 if one is wrong.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.initMembers(roster, args) },
	}
	c.Flags().StringVar(&roster, "roster", "", "`file` with the roster")
	require(c, "roster")
	return c
}

func (a *app) initMembers(roster string, files []string) error {
	r, err := loadRoster(roster)
	if err != nil {
		return err
	}
	var all []archive.Countersignature
	for _, file := range files {
		b, err := readFile(file, archive.MaxCountersignatures)
		if err != nil {
			return withStatus(exitUsage, err)
		}
		some, err := archive.ParseCountersignatures(b)
		if err != nil {
			return fmt.Errorf("%s: %w", quote(file), err)
		}
		all = append(all, some...)
	}
	missing, err := r.Uncountersigned(all)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		list := strings.Trim(fmt.Sprint(missing), "[]")
		return withStatus(exitPartial, fmt.Errorf("roster %s: not countersigned by replicas %s", r.ID(), list))
	}
	return a.result(struct {
		Kind    string         `json:"kind"`
		Archive archive.Digest `json:"archive"`
		Members int            `json:"members"`
		Profile trust.Profile  `json:"profile"`
	}{"members", r.ID(), r.N(), r.Profile()}, "archive %s: countersigned by all %d replicas; MAS profile %s", r.ID(), r.N(), r.Profile())
}
