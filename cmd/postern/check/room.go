package check

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/admin/health"
	"postern/internal/units"
)

var roomKinds = []kind{
	{"db.room", health.OK, "", ""},
	{"db.room-low", health.Warning, "The database's disk is nearly full.", "free room, or enlarge the disk"},
	kind(health.DiskFull),
	{"db.room-none", health.Failed, "The database's disk is full: soon nothing is accepted.", "free room, or enlarge the disk"},
}

// full asks what the nodes have found; before the migration they have no place for it.
func (in *inspection) full(ctx context.Context) error {
	var since time.Time
	err := in.conn.QueryRow(ctx, `select full_at from room where full_at is not null`).Scan(&since)
	switch {
	case err == nil:
		in.r.add("db.full", "disk", "since %s", since.UTC().Format(time.RFC3339))
	case errors.Is(err, pgx.ErrNoRows), toldElsewhere(err):
		return nil
	}
	return err
}

// disk looks only where the database is on this machine, and its role may know the folder.
func (in *inspection) disk(ctx context.Context) error {
	if tcp, is := in.conn.PgConn().Conn().RemoteAddr().(*net.TCPAddr); is && !tcp.IP.IsLoopback() {
		return nil
	}
	var dir string
	err := in.conn.QueryRow(ctx, `select setting from pg_settings where name = 'data_directory'`).Scan(&dir)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	free, err := health.FreeSpace(dir)
	if err != nil {
		return nil // a container's path, or one that this user may not reach
	}
	var reserve int64
	if in.c.cfg.Database.Private != "" { // the only disk that nodes ask
		reserve = int64(in.c.cfg.Queue.Reserve)
	}
	judgeRoom(in.r, free, reserve, in.c.bounds)
	return nil
}

// judgeRoom looks at what is free. Below the reserve nodes accept nothing.
func judgeRoom(r *report, free, reserve int64, b bounds) {
	id := "db.room"
	switch {
	case free < reserve:
		r.add("db.full", "disk", "%s free for the database, and below %s mail is refused", units.RoughOctets(free), units.RoughOctets(reserve))
		return
	case free < b.none:
		id = "db.room-none"
	case free < b.low:
		id = "db.room-low"
	}
	r.add(id, "disk", "%s free for the database", units.RoughOctets(free))
}
