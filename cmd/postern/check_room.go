package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5"

	"postern/admin"
)

var roomKinds = []kind{
	{"db.room", statusOK, "There is room on the disk of the database.", ""},
	{"db.room-low", statusWarning, "The disk of the database is nearly full.", "free room, or give it a larger disk"},
	{"db.room-none", statusFailed, "The disk of the database is full: soon nothing is accepted.", "free room, or give it a larger disk"},
}

// octets prints a size for people.
func octets(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d octets", n)
}

// disk can only be looked at where the database is on this machine, by who may know
// where it is.
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
	free, err := admin.FreeSpace(dir)
	if err != nil {
		return nil // a container's path, or one that this user may not reach
	}
	id := "db.room"
	switch {
	case free < in.c.bounds.none:
		id = "db.room-none"
	case free < in.c.bounds.low:
		id = "db.room-low"
	}
	in.r.add(id, "disk", "%s free for the database", octets(free))
	return nil
}
