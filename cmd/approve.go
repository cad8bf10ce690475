package cmd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

// approvalsDir, in mas, is where a measured device's approvals lie.
const approvalsDir = "approvals"

const bootFormat = "bonafide/boot/v1"

// A bootFile is what a machine measured while it booted, for its operator to
// approve.
type bootFile struct {
	Format    string                 `json:"format"`
	Registers map[int]archive.Digest `json:"registers"` // SHA-256 bank
}

func newBootFile(values map[int][32]byte) bootFile {
	b := bootFile{bootFormat, make(map[int]archive.Digest)}
	for i, v := range values {
		b.Registers[i] = v
	}
	return b
}

func readBoot(file string) (trust.Boot, error) {
	b, err := readFile(file, maxSmallFile)
	if err != nil {
		return trust.Boot{}, withStatus(exitUsage, fmt.Errorf("boot: %w", err))
	}
	var f bootFile
	if err := json.Unmarshal(b, &f); err != nil || f.Format != bootFormat {
		return trust.Boot{}, usagef("%s: not a %s", quote(file), bootFormat)
	}
	values := make(map[int][32]byte)
	for i, v := range f.Registers {
		values[i] = v
	}
	boot, err := trust.NewBoot(values)
	if err != nil {
		return boot, usagef("%s: %w", quote(file), err)
	}
	return boot, nil
}

// A measure is what init replica needs to make a device of profile measured.
type measure struct{ approver, approval string }

// writeText puts the text of v and a line's end in place.
func writeText(name string, v encoding.TextMarshaler) error {
	b, err := v.MarshalText()
	if err != nil {
		return err
	}
	return writeFile(name, append(b, '\n'), 0o644)
}

// takeIn keeps an approval for the device's next writes, provided that by made it.
func (m member) takeIn(file string, by trust.Approver) (a trust.Approval, err error) {
	b, err := readFile(file, maxSmallFile)
	if err != nil {
		return a, withStatus(exitUsage, fmt.Errorf("approval: %w", err))
	}
	if err := a.UnmarshalText(b); err != nil {
		return a, usagef("%s: %w", quote(file), err)
	}
	if err := a.Verify(by); err != nil {
		return a, withStatus(exitIntegrity, fmt.Errorf("%s: %w", quote(file), err))
	}
	name := fmt.Sprintf("%x%s", a.Boot.Policy(), tpm.ApprovalSuffix)
	return a, writeText(m.path(masDir, approvalsDir, name), a)
}

// measure gives the replica's device-to-be its approver and the approval of its
// first writes.
func (m member) measure(with measure) error {
	var by trust.Approver
	if err := by.UnmarshalText([]byte(with.approver)); err != nil {
		return usagef("--approver: %w", err)
	}
	if err := os.MkdirAll(m.path(masDir, approvalsDir), 0o700); err != nil {
		return err
	}
	if _, err := m.takeIn(with.approval, by); err != nil {
		return err
	}
	return writeText(m.path(masDir, approvalsDir, tpm.ApproverFile), by)
}

// approver reads what measure wrote.
func (m member) approver() (by trust.Approver, err error) {
	if m.Profile != trust.ProfileMeasured {
		return by, usagef("replica %d needs no approval: its device is not of profile %s", m.ID, trust.ProfileMeasured)
	}
	b, err := readFile(m.path(masDir, approvalsDir, tpm.ApproverFile), maxSmallFile)
	if err == nil {
		err = by.UnmarshalText(b)
	}
	return by, err
}

func approverFile(name string) string {
	if name == "" {
		return filepath.Join(configHome(), "approver.key")
	}
	return name
}

func (a *app) initApproverCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "approver",
		Short: "Make the key that approves boots and print its public line",
		Long: `Make the key of an approver, the operator who says which boots of a replica's
machine may write to its device of profile measured, and print its public line
for bonafide init replica --approver. Keep the key away from the replicas:
whoever has it can approve any boot, and nothing takes an approval back.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.initApprover(approverFile(key)) },
	}
	c.Flags().StringVar(&key, "key", "", "`file` of the new private key (default $XDG_CONFIG_HOME/bonafide/approver.key)")
	return c
}

func (a *app) initApprover(name string) error {
	if exists(name) {
		return withHint(withStatus(exitUsage, fmt.Errorf("%s: %w", quote(name), fs.ErrExist)), "--key FILE makes another")
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	by, err := trust.ApproverOf(key)
	if err != nil {
		return err
	}
	if err := savePrivate(name, key); err != nil {
		return err
	}
	line, err := by.MarshalText()
	if err != nil {
		return err
	}
	a.say("the private key is in %s", quote(name))
	return a.result(struct {
		Kind string `json:"kind"`
		Key  string `json:"key"`
		File string `json:"file"`
	}{"approver", string(line), name}, "%s", line)
}

// text prints the text of v as a line.
func (a *app) text(v encoding.TextMarshaler) error {
	b, err := v.MarshalText()
	if err != nil {
		return err
	}
	return a.line(a.out, string(b))
}

// loadApprover reads what initApprover wrote.
func loadApprover(name string) (*ecdsa.PrivateKey, error) {
	any, err := loadPrivate(name)
	if err != nil {
		return nil, err
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok {
		return nil, usagef("%s: not an ECDSA key", quote(name))
	}
	if _, err := trust.ApproverOf(key); err != nil {
		return nil, usagef("%s: %w", quote(name), err)
	}
	return key, nil
}

func (a *app) initBootCommand() *cobra.Command {
	m := member{}
	var pcrs []int
	c := &cobra.Command{
		Use:   "boot --dir DIR",
		Short: "Print what this machine measured while it booted",
		Long: `Print the values of the registers (PCRs) into which this machine's firmware and
boot loader measured what they ran, for the operator to approve with bonafide
init approve. Register 7 holds the secure boot policy, 11 the unified kernel
image. Choose registers that change when, and only when, the update image does.

The directory is that of a replica, or of one that is still to be made, whose
kind of device --mas then says. Nothing measures into a software TPM by itself.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.initBoot(c.Context(), m, pcrs) },
	}
	f := c.Flags()
	f.StringVar(&m.dir, "dir", "", "`directory` of the replica")
	f.StringVar(&m.MAS, "mas", masTPM, "`kind` of trusted device of a replica still to be made: swtpm or tpm")
	f.StringVar(&m.Device, "device", "", "`file` of its TPM (default "+tpmDevice+")")
	f.IntSliceVar(&pcrs, "pcr", []int{7, 11}, "`numbers` of registers")
	require(c, "dir")
	return c
}

func (a *app) initBoot(ctx context.Context, m member, pcrs []int) error {
	if exists(m.path(memberFile)) {
		var err error
		if m, err = openMember(m.dir); err != nil {
			return err
		}
	}
	if m.MAS != masSwtpm && m.MAS != masTPM {
		return usagef("a device of kind %s measures no boot", quote(m.MAS))
	}
	values, err := m.registers(ctx, pcrs)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(newBootFile(values), "", "  ")
	if err != nil {
		return err
	}
	a.say("on the operator's machine: bonafide init approve BOOT-FILE")
	return a.line(a.out, string(b))
}

// registers asks the TPM of the replica, which may be served at the time.
func (m member) registers(ctx context.Context, numbers []int) (values map[int][32]byte, err error) {
	read := func(t tpm.Target) error {
		values, err = tpm.ReadRegisters(ctx, t, numbers)
		return err
	}
	if m.MAS == masTPM {
		return values, read(m.target())
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := m.claim()
	if err != nil && exitStatus(err) == exitLocked {
		return values, read(m.target())
	}
	if err != nil {
		return nil, err
	}
	return values, errors.Join(m.withTPM(ctx, read), lock.Close())
}

func (a *app) initApproveCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "approve BOOT-FILE",
		Short: "Approve a boot that bonafide init boot printed",
		Long: `Sign, with the approver's key, that a boot may write to the devices of profile
measured that were made for this approver, and print the approval. It goes to
the replica: the first with bonafide init replica --approval, later ones, before
or after the machine boots a new image, with bonafide init approval.

An approval can not be taken back: an image that was approved once may write for
ever. Nor does it name a device: give each machine an approver of its own where
an image must be approved for one alone.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.initApprove(args[0], approverFile(key)) },
	}
	c.Flags().StringVar(&key, "key", "", "`file` of the approver's key (default $XDG_CONFIG_HOME/bonafide/approver.key)")
	return c
}

func (a *app) initApprove(file, key string) error {
	boot, err := readBoot(file)
	if err != nil {
		return err
	}
	k, err := loadApprover(key)
	if err != nil {
		return err
	}
	approval, err := trust.Approve(k, boot)
	if err != nil {
		return err
	}
	a.say("approved: %s", boot)
	return a.text(approval)
}

func (a *app) initApprovalCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "approval --dir DIR APPROVAL-FILE",
		Short: "Give a replica the approval of another boot",
		Long: `Keep an approval, which bonafide init approve printed, with the replica in a
directory, provided that the replica's approver made it. Those that it has stay:
of several, the one of the present boot is used.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.initApproval(dir, args[0]) },
	}
	c.Flags().StringVar(&dir, "dir", "", "`directory` of the replica")
	require(c, "dir")
	return c
}

func (a *app) initApproval(dir, file string) error {
	m, err := openMember(dir)
	if err != nil {
		return err
	}
	by, err := m.approver()
	if err != nil {
		return err
	}
	approval, err := m.takeIn(file, by)
	if err == nil {
		a.say("replica %d may write after this boot: %s", m.ID, approval.Boot)
	}
	return err
}
