package rig

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// Pair is two PostgreSQL servers on loopback, a primary and its synchronous standby, for
// tests of failovers. They listen over TCP on addresses of their own, as machines do.
type Pair struct {
	r                *Rig
	primary, standby *member
}

// member is one server of a pair.
type member struct {
	address string
	server  *pgserver.Server
}

func newMember() *member {
	return &member{address: fmt.Sprintf("127.%d.%d.%d", 1+rand.N(250), rand.N(250), 1+rand.N(250))}
}

func (m *member) start(t testing.TB, dir string) {
	t.Helper()
	m.server = pgtest.Server(t, pgserver.Config{Dir: dir, Settings: map[string]string{"listen_addresses": m.address}})
}

// url is the member's database, over TCP.
func (m *member) url() string { return "postgres://postern@" + m.address + "/postgres?sslmode=disable" }

// NewPair is New on a pair of servers. The rig's database is either of them, the one that
// writes.
func NewPair(t testing.TB) (*Rig, *Pair) {
	t.Helper()
	r := &Rig{t: t, dir: t.TempDir(), binary: binary(t, "")}
	p := &Pair{r: r, primary: newMember(), standby: newMember()}
	r.url = "postgres://postern@" + p.primary.address + "," + p.standby.address +
		"/postgres?sslmode=disable&target_session_attrs=read-write"
	p.primary.start(t, "")
	p.follow()
	r.begin()
	return r, p
}

// NewTCP is New on a server of its own that listens over TCP at host.
func NewTCP(t testing.TB) (r *Rig, host string) {
	t.Helper()
	m := newMember()
	m.start(t, "")
	r = &Rig{t: t, dir: t.TempDir(), binary: binary(t, ""), url: m.url()}
	r.begin()
	return r, m.address
}

// NewSmallDisk is NewTCP on a disk of its own, of so many octets, which is mounted at dir. The
// server's log of commits is small, for a small disk. Only root can have that.
func NewSmallDisk(t testing.TB, size int64) (r *Rig, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	dir = pgtest.Dir(t)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0755", size)); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	m := newMember()
	m.server = pgtest.Server(t, pgserver.Config{Dir: filepath.Join(dir, "postgres"), Settings: map[string]string{
		"listen_addresses": m.address, "max_wal_size": "64MB", "min_wal_size": "64MB", "shared_buffers": "32MB"}})
	r = &Rig{t: t, dir: t.TempDir(), binary: binary(t, ""), url: m.url(), pgDir: filepath.Join(dir, "postgres"), postgres: m.server}
	r.begin()
	return r, dir
}

// Pause stops the primary where it is: it says nothing, and its connections stay open.
func (p *Pair) Pause() { p.primary.server.Pause() }

// Kill ends the primary and all its connections.
func (p *Pair) Kill() {
	p.r.t.Helper()
	if err := p.primary.server.Kill(); err != nil {
		p.r.t.Fatal(err)
	}
	p.r.pool.Reset()
}

// Lag lets commits wait for the standby no more, and the standby hear of none: what is
// committed from now on is lost with the primary.
func (p *Pair) Lag() {
	p.r.t.Helper()
	p.run(p.primary, "alter system reset synchronous_standby_names")
	p.run(p.primary, "select pg_reload_conf()")
	p.run(p.standby, "alter system set primary_conninfo = ''")
	p.run(p.standby, "select pg_reload_conf()")
	p.run(p.primary, `do $$ begin
		while exists (select from pg_stat_replication) loop perform pg_sleep(0.02), pg_stat_clear_snapshot(); end loop; end $$`)
}

// Promote makes the standby a primary and returns when it writes.
func (p *Pair) Promote() {
	p.r.t.Helper()
	p.run(p.standby, "select pg_promote()")
}

// Renew makes the promoted standby the primary, when the old one was killed, and gives it
// a standby at the old one's address.
func (p *Pair) Renew() {
	p.r.t.Helper()
	p.primary, p.standby = p.standby, &member{address: p.primary.address}
	p.follow()
}

// run runs a statement on a member.
func (p *Pair) run(m *member, sql string) {
	p.r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, m.url())
	if err == nil {
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, sql)
	}
	if err != nil {
		p.r.t.Fatalf("%s: %v", sql, err)
	}
}

// follow makes the standby from a copy of the primary and lets commits wait for it.
func (p *Pair) follow() {
	p.r.t.Helper()
	dir := pgtest.Dir(p.r.t)
	if err := p.copyTo(dir); err != nil {
		p.r.t.Fatal(err)
	}
	p.standby.start(p.r.t, dir)
	p.run(p.primary, "alter system set synchronous_standby_names = '*'")
	p.run(p.primary, "select pg_reload_conf()")
	p.run(p.primary, `do $$ begin
		while not exists (select from pg_stat_replication where sync_state = 'sync') loop
			perform pg_sleep(0.02), pg_stat_clear_snapshot();
		end loop; end $$`)
}

// makeStandby makes $1 the folder of a server that follows $2, and waits for no standby
// itself. pgserver knows a folder of its own by the lock.
const makeStandby = `set -e
mkdir -m 700 "$1"
: >"$1/lock"
"$3/pg_basebackup" --dbname="$2" --pgdata="$1/data" --checkpoint=fast --no-sync
: >"$1/data/standby.signal"
printf "%s\n" "primary_conninfo = '$2'" "synchronous_standby_names = ''" >>"$1/data/postgresql.auto.conf"`

// copyTo makes the standby's folder, as the user that the primary runs as.
func (p *Pair) copyTo(dir string) error {
	primary := p.primary.server
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", primary.PID()))
	if err != nil {
		return err
	}
	cmd := exec.Command("/bin/sh", "-c", makeStandby, "standby", dir, p.primary.url(), filepath.Dir(program))
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		info, err := os.Stat(filepath.Join(primary.Dir(), "data"))
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make a standby: %w: %s", err, out)
	}
	return nil
}
