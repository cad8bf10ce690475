package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

// A machine is one whose root is an attacker. Its device stores Slots(1) and is
// in service mode.
type machine struct {
	trusttest.Device
	mas      trust.MAS
	s        *tpm.Swtpm
	dir      string // of the state of s
	target   tpm.Target
	operator *ecdsa.PrivateKey // of profile measured
	moved    bool              // the key is in the endorsement hierarchy
}

// shut is a machine as Provision makes it.
func shut(t *testing.T) *machine { return newMachine(t, rand.Reader) }

// ownerOpen is one whose owner and lockout authorisations are empty: a TPM drops
// the zeros at the end of an authorisation.
func ownerOpen(t *testing.T) *machine { return newMachine(t, zeros{}) }

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// platformOpen is one whose firmware leaves the platform hierarchy open.
func platformOpen(t *testing.T) *machine {
	m := shut(t)
	must(t, m.s.Suspend(t.Context(), tpm2.TPMSUClear)) // a restart empties the authorisation
	must(t, m.mas.Lock(t.Context()))
	return m
}

func newMachine(t *testing.T, rand io.Reader) *machine {
	m := &machine{}
	m.s, m.dir = startSwtpm(t)
	m.target = m.s.Target()
	var err error
	m.Identity, m.Agreement, err = tpm.Provision(t.Context(), m.target, tpm.Setup{}, rand)
	must(t, err)
	m.Reset = func(t *testing.T) { cycle(t, m.s) }
	m.serve(t)
	return m
}

// measuredBoot is one of profile measured.
func measuredBoot(t *testing.T) *machine {
	x := newMeasured(t)
	m := &machine{Device: x.Device, s: x.s, target: x.target, operator: x.operator}
	m.serve(t)
	return m
}

// serve runs an update phase a boot after provisioning, as in life, and ends it.
func (m *machine) serve(t *testing.T) {
	m.mas = open(t, m.target)
	must(t, m.mas.Store(t.Context(), trusttest.Slots(0)))
	must(t, m.mas.Advance(t.Context()))
	m.Reset(t)
	must(t, m.mas.Store(t.Context(), trusttest.Slots(1)))
	must(t, m.mas.Lock(t.Context()))
}

// endorsementKey is one whose attestation key was made in the endorsement
// hierarchy, and otherwise as Provision does. Nobody takes it for a device, so
// before and after are the same refusal.
func endorsementKey(t *testing.T) *machine {
	m := ownerOpen(t)
	must(t, m.raw(t, moveKey))
	m.Identity.Key, m.moved = m.keyArea(t), true
	return m
}

// raw sends what f sends.
func (m *machine) raw(t *testing.T, f func(transport.TPM) error) error {
	return tpm.Raw(t.Context(), m.target, f)
}

// send is an attack that is TPM commands and nothing else.
func send(f func(transport.TPM) error) func(*testing.T, *machine) error {
	return func(t *testing.T, m *machine) error { return m.raw(t, f) }
}

// A view is what a verifier gets of a machine.
type view struct {
	trust.Statement
	refusal string
}

func (m *machine) look(t *testing.T) (v view) {
	var n trust.Nonce
	if _, err := rand.Read(n[:]); err != nil {
		t.Fatal(err)
	}
	a, err := m.mas.Lookup(t.Context(), n)
	if err != nil {
		return view{refusal: "no answer"}
	}
	if v.Statement, err = m.Identity.Verify(a, n); err != nil {
		v.refusal = strings.Replace(err.Error(), trust.ErrAttestation.Error(), "refused", 1)
	}
	return v
}

// changes says in what a verifier's view differs from the one before: "no
// answer", "refused: why", or what of the statement has changed.
func (m *machine) changes(t *testing.T, before view) string {
	t.Helper()
	v := m.look(t)
	if v.refusal != "" {
		return v.refusal
	}
	var all []string
	note := func(differs bool, format string, args ...any) {
		if differs {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	note(v.Mode != before.Mode, "%v mode", v.Mode)
	note(v.Slots != before.Slots, "slots")
	note(v.Counter != before.Counter, "counter %+d", int64(v.Counter-before.Counter))
	note(v.Counts.Reset != before.Counts.Reset, "resets %+d", int32(v.Counts.Reset-before.Counts.Reset))
	note(v.Counts.Restart != before.Counts.Restart, "restarts %+d", int32(v.Counts.Restart-before.Counts.Restart))
	note(v.Safe != before.Safe, "clock unsafe")
	note(v.Clock > before.Clock+ahead/2, "clock")
	return strings.Join(all, ", ")
}

func auth(h tpm2.TPMHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Auth: tpm2.PasswordAuth(nil)}
}

func byIndex(c transport.TPM, h tpm2.TPMHandle, s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: named(c, h).Name, Auth: s}
}

func named(c transport.TPM, h tpm2.TPMHandle) tpm2.NamedHandle {
	name, err := tpm.Name(c, h)
	if err != nil {
		panic(err)
	}
	return tpm2.NamedHandle{Handle: h, Name: name}
}

func key(c transport.TPM) tpm2.NamedHandle {
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(tpm.KeyHandle)}.Execute(c)
	if err != nil {
		panic(err)
	}
	return tpm2.NamedHandle{Handle: tpm.KeyHandle, Name: rsp.Name}
}

func write(c transport.TPM, by tpm2.AuthHandle) error {
	_, err := tpm2.NVWrite{
		AuthHandle: by, NVIndex: named(c, tpm.SlotsIndex),
		Data: tpm2.TPM2BMaxNVBuffer{Buffer: trusttest.Slots(66).Bytes()},
	}.Execute(c)
	return err
}

func read(c transport.TPM, by tpm2.AuthHandle) error {
	_, err := tpm2.NVRead{AuthHandle: by, NVIndex: named(c, tpm.AgreementIndex), Size: 32}.Execute(c)
	return err
}

func undefine(by, h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error {
		_, err := tpm2.NVUndefineSpace{AuthHandle: auth(by), NVIndex: named(c, h)}.Execute(c)
		return err
	}
}

func takeover(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error {
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: auth(h), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("mine")}}.Execute(c)
		return err
	}
}

func writeBy(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error { return write(c, auth(h)) }
}

func writeByPassword(c transport.TPM) error {
	return write(c, byIndex(c, tpm.SlotsIndex, tpm2.PasswordAuth(nil)))
}

func writeByPolicy(c transport.TPM) error {
	return write(c, byIndex(c, tpm.SlotsIndex, tpm.PolicyFor(tpm.SlotsIndex)))
}

func incrementByPolicy(c transport.TPM) error {
	_, err := tpm2.NVIncrement{
		AuthHandle: byIndex(c, tpm.CounterIndex, tpm.PolicyFor(tpm.CounterIndex)),
		NVIndex:    named(c, tpm.CounterIndex),
	}.Execute(c)
	return err
}

func readBy(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error { return read(c, auth(h)) }
}

func readByPassword(c transport.TPM) error {
	return read(c, byIndex(c, tpm.AgreementIndex, tpm2.PasswordAuth(nil)))
}

func startup(c transport.TPM) error {
	_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(c)
	return err
}

func clearBy(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error {
		_, err := tpm2.Clear{AuthHandle: auth(h)}.Execute(c)
		return err
	}
}

func defineByOwner(c transport.TPM) error {
	_, err := tpm2.NVDefineSpace{AuthHandle: auth(tpm2.TPMRHOwner), PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: tpm.SlotsIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: trust.SlotsSize,
		Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true},
	})}.Execute(c)
	return err
}

func evict(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error {
		_, err := tpm2.EvictControl{Auth: auth(h), ObjectHandle: key(c), PersistentHandle: tpm.KeyHandle}.Execute(c)
		return err
	}
}

// makeKey makes an attestation key in a hierarchy.
func makeKey(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error {
		rsp, err := primary(c, h, tpm.KeyTemplate())
		if err != nil {
			return err
		}
		_, err = tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(c)
		return err
	}
}

func primary(c transport.TPM, h tpm2.TPMHandle, template tpm2.TPMTPublic) (*tpm2.CreatePrimaryResponse, error) {
	return tpm2.CreatePrimary{PrimaryHandle: auth(h), InPublic: tpm2.New2B(template)}.Execute(c)
}

// moveKey puts a key of the endorsement hierarchy in the place of the
// attestation key, if there is one.
func moveKey(c transport.TPM) error {
	if err := evict(tpm2.TPMRHOwner)(c); err != nil {
		return err
	}
	rsp, err := primary(c, tpm2.TPMRHEndorsement, tpm.KeyTemplate())
	if err != nil {
		return err
	}
	_, err = tpm2.EvictControl{
		Auth:         auth(tpm2.TPMRHOwner),
		ObjectHandle: tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, PersistentHandle: tpm.KeyHandle,
	}.Execute(c)
	return err
}

// Commands that the library does not know, TPM 2.0 Part 2, 6.5.2. The password
// is empty.
const (
	ccChangePPS       = 0x00000125
	ccHierarchy       = 0x00000121
	ccClockSet        = 0x00000128
	ccLockoutSettings = 0x0000013A
	ccIndexAuth       = 0x0000013B
)

// ahead is by how much attackers set the clock forward, in milliseconds.
const ahead = 1 << 40

// command sends a command on handle with its parameters, fixed numbers all.
func command(c transport.TPM, code uint32, handle tpm2.TPMHandle, parameters ...any) error {
	var b bytes.Buffer
	put := func(v any) { binary.Write(&b, binary.BigEndian, v) }
	put(uint32(handle))
	put(uint32(9)) // one session: its handle, no nonce, no attributes, no password
	put(uint32(tpm2.TPMRSPW))
	put([5]byte{})
	for _, p := range parameters {
		put(p)
	}
	head := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	head = binary.BigEndian.AppendUint32(head, uint32(10+b.Len()))
	head = binary.BigEndian.AppendUint32(head, code)
	rsp, err := c.Send(append(head, b.Bytes()...))
	if err != nil {
		return err
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])); rc != tpm2.TPMRCSuccess {
		return rc
	}
	return nil
}

func setClock(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error { return command(c, ccClockSet, h, uint64(ahead)) }
}

func disable(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error { return command(c, ccHierarchy, h, uint32(h), uint8(0)) }
}

func changeSeed(c transport.TPM) error { return command(c, ccChangePPS, tpm2.TPMRHPlatform) }

func easeLockout(c transport.TPM) error {
	return command(c, ccLockoutSettings, tpm2.TPMRHLockout, uint32(1), uint32(1), uint32(1))
}

func changeIndexAuth(c transport.TPM) error {
	return command(c, ccIndexAuth, tpm.SlotsIndex, uint16(4), [4]byte{'m', 'i', 'n', 'e'})
}

// publicOf returns with what an index was defined.
func publicOf(c transport.TPM, h tpm2.TPMHandle) (*tpm2.TPMSNVPublic, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: h}.Execute(c)
	if err != nil {
		return nil, err
	}
	x, err := rsp.NVPublic.Contents()
	if err == nil {
		x.Attributes.WriteLocked, x.Attributes.Written = false, false
	}
	return x, err
}

// remake has by undefine an index and define it again, just as it was.
func remake(c transport.TPM, by, h tpm2.TPMHandle) error {
	x, err := publicOf(c, h)
	if err != nil {
		return err
	}
	if err := undefine(by, h)(c); err != nil {
		return err
	}
	_, err = tpm2.NVDefineSpace{AuthHandle: auth(tpm2.TPMRHOwner), PublicInfo: tpm2.New2B(*x)}.Execute(c)
	return err
}

// remakeSlots forges: new slots of the old name, written and locked.
func remakeSlots(c transport.TPM) error {
	if err := remake(c, tpm2.TPMRHOwner, tpm.SlotsIndex); err != nil {
		return err
	}
	return errors.Join(writeByPolicy(c), lockIndex(c, tpm.SlotsIndex))
}

// remakeCounter does the like with the counter. A TPM begins a new counter
// above all that it ever had.
func remakeCounter(c transport.TPM) error {
	if err := remake(c, tpm2.TPMRHOwner, tpm.CounterIndex); err != nil {
		return err
	}
	return errors.Join(incrementByPolicy(c), lockIndex(c, tpm.CounterIndex))
}

func lockIndex(c transport.TPM, h tpm2.TPMHandle) error {
	_, err := tpm2.NVWriteLock{
		AuthHandle: byIndex(c, h, tpm.LockerOf(h)), NVIndex: named(c, h),
	}.Execute(c)
	return err
}

// remakeSlotsByPlatform does so with the platform hierarchy alone.
func remakeSlotsByPlatform(c transport.TPM) error {
	x, err := publicOf(c, tpm.SlotsIndex)
	if err != nil {
		return err
	}
	if err := undefine(tpm2.TPMRHPlatform, tpm.SlotsIndex)(c); err != nil {
		return err
	}
	x.Attributes.PlatformCreate = true
	_, err = tpm2.NVDefineSpace{AuthHandle: auth(tpm2.TPMRHPlatform), PublicInfo: tpm2.New2B(*x)}.Execute(c)
	if err != nil {
		return err
	}
	return errors.Join(writeByPolicy(c), lockIndex(c, tpm.SlotsIndex))
}

// clearAndRemake clears the TPM and makes the device again, with a key of the
// same hierarchy, then forges.
func clearAndRemake(t *testing.T, m *machine) error {
	must(t, m.raw(t, clearBy(tpm2.TPMRHLockout)))
	again, _, err := tpm.Provision(t.Context(), m.target, tpm.Setup{}, zeros{})
	must(t, err)
	if m.moved {
		must(t, m.raw(t, moveKey))
		if again.Key = m.keyArea(t); !bytes.Equal(again.Key, m.Identity.Key) {
			t.Fatal("the attack is none: the key of the endorsement hierarchy did not come back")
		}
	}
	if !bytes.Equal(again.SlotsPublic, m.Identity.SlotsPublic) {
		t.Fatal("the attack is none: the slots are not as they were")
	}
	return errors.Join(m.raw(t, writeByPolicy), m.mas.Lock(t.Context()))
}

func (m *machine) keyArea(t *testing.T) (area []byte) {
	t.Helper()
	must(t, m.raw(t, func(c transport.TPM) error {
		rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(tpm.KeyHandle)}.Execute(c)
		if err == nil {
			area = bytes.Clone(rsp.OutPublic.Bytes())
		}
		return err
	}))
	return area
}

// lockOut guesses at a key of root's own until the TPM lets nobody guess.
func lockOut(c transport.TPM) error {
	template := tpm.KeyTemplate()
	template.ObjectAttributes.NoDA = false
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: auth(tpm2.TPMRHEndorsement), InPublic: tpm2.New2B(template),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")},
		}},
	}.Execute(c)
	if err != nil {
		return err
	}
	for range 64 {
		err = quote(c, tpm2.AuthHandle{Handle: rsp.ObjectHandle, Name: rsp.Name, Auth: tpm2.PasswordAuth([]byte("guess"))})
		if !errors.Is(err, tpm2.TPMRCAuthFail) && !errors.Is(err, tpm2.TPMRCRetry) {
			return err
		}
	}
	return errors.New("the TPM lets guess on")
}

func quote(c transport.TPM, by tpm2.AuthHandle) error {
	_, err := tpm2.Quote{SignHandle: by, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(c)
	return err
}

// fake is what the TPM would say of the slots, as far as a reader of its first
// bytes can tell.
var fake = append([]byte{0xFF, 'T', 'C', 'G', 0x80, 0x14}, make([]byte, 100)...)

// signFake has the attestation key sign fake, with the TPM's ticket for another
// message: that it does not look like the TPM's own words. No message: none.
func signFake(message []byte) func(transport.TPM) error {
	return func(c transport.TPM) error {
		ticket := tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}
		if message != nil {
			h, err := tpm2.Hash{
				Data: tpm2.TPM2BMaxBuffer{Buffer: message}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: tpm2.TPMRHOwner,
			}.Execute(c)
			if err != nil {
				return err
			}
			ticket = h.Validation
		}
		k, sum := key(c), sha256.Sum256(fake)
		_, err := tpm2.Sign{
			KeyHandle:  tpm2.AuthHandle{Handle: k.Handle, Name: k.Name, Auth: tpm2.PasswordAuth(nil)},
			Digest:     tpm2.TPM2BDigest{Buffer: sum[:]},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			Validation: ticket,
		}.Execute(c)
		return err
	}
}

// reboot resets the machine, boots root's own image, writes with what policy
// lets through, and locks.
func reboot(t *testing.T, m *machine, policy func() tpm2.Session) error {
	cycle(t, m.s)
	must(t, m.raw(t, measureInto("evil")))
	err := m.raw(t, func(c transport.TPM) error { return write(c, byIndex(c, tpm.SlotsIndex, policy())) })
	must(t, m.mas.Lock(t.Context()))
	return err
}

func rebootAndForge(t *testing.T, m *machine) error {
	return reboot(t, m, func() tpm2.Session { return tpm.PolicyFor(tpm.SlotsIndex) })
}

// rebootWith does so under profile measured, with somebody's approval of image.
func rebootWith(image string, by func(*testing.T, *machine) *ecdsa.PrivateKey) func(*testing.T, *machine) error {
	return func(t *testing.T, m *machine) error {
		signer := by(t, m)
		approval, err := trust.Approve(signer, bootOf(t, image))
		must(t, err)
		approver, err := trust.ApproverOf(signer)
		must(t, err)
		return reboot(t, m, func() tpm2.Session {
			return tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(c transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
				return tpm.Present(c, h, approver, approval, m.target)
			})
		})
	}
}

func theOperator(_ *testing.T, m *machine) *ecdsa.PrivateKey { return m.operator }

func aStranger(t *testing.T, _ *machine) *ecdsa.PrivateKey { return newOperator(t) }

// aPhaseLater is a machine that has run one more update phase since root copied
// its state, which he had the TPM write as for a shutdown.
func aPhaseLater(t *testing.T) *machine {
	m := shut(t)
	must(t, m.raw(t, func(c transport.TPM) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(c)
		return err
	}))
	must(t, os.CopyFS(filepath.Join(m.dir, "copy"), os.DirFS(filepath.Join(m.dir, "mas"))))
	m.Reset(t)
	must(t, m.mas.Store(t.Context(), trusttest.Slots(2)))
	must(t, m.mas.Advance(t.Context()))
	must(t, m.mas.Lock(t.Context()))
	return m
}

// restore brings the copy back and starts it, which is a reset like the one of
// the phase that it undoes.
func (m *machine) restore(t *testing.T) {
	t.Helper()
	must(t, m.s.Stop())
	mas := filepath.Join(m.dir, "mas")
	must(t, os.RemoveAll(mas))
	must(t, os.CopyFS(mas, os.DirFS(filepath.Join(m.dir, "copy"))))
	var err error
	m.s, err = tpm.StartSwtpm(t.Context(), mas, filepath.Join(m.dir, "run"))
	must(t, err)
	t.Cleanup(func() { must(t, m.s.Stop()) })
}

func rollBack(t *testing.T, m *machine) error {
	m.restore(t)
	return m.mas.Lock(t.Context())
}

func rollBackAndForge(t *testing.T, m *machine) error {
	m.restore(t)
	return errors.Join(m.raw(t, writeByPolicy), m.raw(t, incrementByPolicy), m.mas.Lock(t.Context()))
}
