//! The examples that end each `--help`, and each man page.
//!
//! Lines of capitals are headings. What is indented by two spaces is kept as it is: a caption, which ends
//! with a colon, or what is typed. A line that stands flush is a paragraph, wrapped by whoever shows it.

pub(crate) const UZRAM: &str = "\
EXAMPLES
  An 8 GiB scratch disk that takes at most 1 GiB of memory:
  uzram mount --size 8G --mem-limit 1G --backing /var/tmp/scratch.spill \\
      /mnt/scratch
  uzram stat mnt-scratch
  uzram umount /mnt/scratch

  Without root, over NBD:
  uzram serve vm --size 4G --nbd unix:/tmp/vm.sock &
  nbdcopy image.raw 'nbd+unix:///vm?socket=/tmp/vm.sock'

Every verb has examples of its own: uzram serve --help

EXIT STATUS
  0  Done, or the reader of the output went away.
  1  It failed, or was refused, as things are on this machine now.
  2  It was asked for wrongly: unknown words, values that make no sense.

A failure is one line on stderr that begins with `uzram: `.";

pub(crate) const SERVE: &str = "\
EXAMPLES
  On the default socket, RUNDIR/vm/nbd.sock; prints `ready` once it serves:
  uzram serve vm --size 4G

  With 512 MiB of memory and the rest in a file, over NBD and FUSE:
  uzram serve vm --size 16G --mem-limit 512M \\
      --backing /var/tmp/vm.spill --nbd tcp:127.0.0.1:10809 --fuse /mnt/vm

  To other machines over TLS, with certificates on both sides:
  uzram serve vm --size 4G --nbd tcp:0.0.0.0:10809 \\
      --tls-certificates /etc/pki/nbd --tls require --tls-verify-peer

  With metrics for Prometheus and a log of requests of 50 ms or longer:
  uzram serve vm --size 4G --metrics tcp:127.0.0.1:9810 --slow 50

  For a guest's swap, or nbd-client -swap (root); for ours see uzram up:
  uzram serve swap --size 8G --nbd unix:/run/swap.sock --swap

  In the background, and for as long as one command needs it:
  uzram serve vm --size 4G --background
  uzram serve tmp --size 1G --run 'nbdcopy image.raw $uri'

  Clients:
  nbdinfo nbd://127.0.0.1/vm
  qemu-img convert image.qcow2 -O raw nbd://127.0.0.1/vm

  As a cache over an image, which has everything written before a flush:
  uzram serve vm --origin /srv/vm.raw --mem-limit 512M \\
      --nbd unix:/tmp/vm.sock

  Any number of devices over one image, which stays as it is:
  uzram serve a --origin /srv/golden.raw --snapshot --mem-limit 256M \\
      --backing /var/tmp/a.spill

SIGTERM or Ctrl-C stops it within 5 seconds; its data is then gone. Over an image it takes as long as \
writing to that takes, or until it is asked again, which gives up what is not there yet.

RUNDIR is $UZRAM_RUNDIR if set, else /run/uzram for root, else $XDG_RUNTIME_DIR/uzram, else /tmp/uzram-UID.";

pub(crate) const MOUNT: &str = "\
EXAMPLES
  uzram mount --size 8G /mnt/scratch
  uzram mount --size 8G --mem-limit 1G --backing /var/tmp/scratch.spill \\
      --fs btrfs /mnt/scratch

  An image, with changes that are gone at the end:
  uzram mount --origin /srv/golden.raw --snapshot --mem-limit 256M \\
      --backing /var/tmp/scratch.spill /mnt/scratch

  uzram list
  uzram umount /mnt/scratch

  Without root:
  uzram mount --rootless --size 2G ~/scratch";

pub(crate) const UMOUNT: &str = "\
EXAMPLES
  uzram umount /mnt/scratch
  uzram umount --save /var/tmp/scratch.image /mnt/scratch

  Show who uses a mountpoint that is busy:
  fuser -vm /mnt/scratch";

pub(crate) const ATTACH: &str = "\
EXAMPLES
  uzram serve disk --size 2G --fuse /mnt/disk &
  uzram attach disk
  mkfs.ext4 /dev/loop0 && mount -o discard /dev/loop0 /mnt/files

  Through the kernel's NBD driver, where there is one:
  modprobe nbd
  uzram attach --nbd disk

  There, fail requests that a dead server leaves unanswered for 10 s:
  uzram attach --nbd --timeout 10 disk";

pub(crate) const DETACH: &str = "\
EXAMPLES
  uzram detach disk";

pub(crate) const LIST: &str = "\
EXAMPLES
  uzram list
  uzram list --json

  For scripts, as zramctl has it; and names alone:
  uzram list --noheadings --bytes --output name,memory
  uzram list -q

COLUMNS
  SIZE       bytes in the device
  STORED     data on it, as its users see it
  COMPR      compressed bytes of the part in memory (with --output)
  MEMORY     memory that this part takes
  LIMIT      the most that MEMORY may be
  BACKING    what the spilled part takes in the backing, compressed
  ALGORITHM  how pages are compressed that are written now
  PID        its server, or `dead`
  WHERE      its mountpoint, else its block device, else where it is served

uzram top has RATIO and SPILLED as well: what SPILLED is as data, BACKING is as room in the backing.";

pub(crate) const LOG: &str = "\
EXAMPLES
  uzram log mnt-scratch
  uzram log --follow /mnt/scratch

A server in the background, as `uzram mount` and `uzram up` start it, logs to RUNDIR/NAME/log; one in the foreground to \
stderr.";

pub(crate) const STAT: &str = "\
EXAMPLES
  uzram stat scratch
  uzram stat scratch --watch
  uzram stat scratch mm_stat bd_stat
  uzram stat scratch --json

  How long operations take, since the start and then each second:
  uzram stat scratch --latency --watch";

pub(crate) const SET: &str = "\
EXAMPLES
  Lower the limit of a device in use; the excess is spilled:
  uzram set scratch mem_limit=512M

  Remove the limit, and restart the high-water mark:
  uzram set scratch mem_limit=0 mem_used_max=0

  Move the spill to another file, and spill there from then on:
  uzram set scratch backing_dev=/mnt/big/scratch.spill

  Let the spill grow, or bring all of it back:
  uzram set scratch backing_size=64G
  uzram set scratch backing_dev=none";

pub(crate) const COMPACT: &str = "\
EXAMPLES
  uzram compact scratch
  uzram compact scratch --json";

pub(crate) const SCRUB: &str = "\
EXAMPLES
  uzram scrub scratch

It exits 1 and names the pages if any cannot be read back.";

pub(crate) const SAVE: &str = "\
EXAMPLES
  In use; a file system is saved as a power cut would leave it:
  uzram save scratch /var/tmp/scratch.image

  Unmounted and complete, and mounted again:
  uzram umount --save /var/tmp/scratch.image /mnt/scratch
  uzram mount --restore /var/tmp/scratch.image --mem-limit 1G \\
      /mnt/scratch

  The same without a file system:
  uzram stop --save vm.image vm
  uzram serve --restore vm.image vm";

pub(crate) const SERVE_DETACHED: &str = "\
EXAMPLES
  uzram serve --background scratch --size 1G";

pub(crate) const SERVE_KEPT: &str = "\
EXAMPLES
  uzram serve --user daemon scratch --size 1G";

pub(crate) const WIPE_SPILL: &str = "\
EXAMPLES
  uzram wipe-spill /var/tmp/scratch.spill";

pub(crate) const CLEAR_SPILL: &str = "\
EXAMPLES
  uzram clear-spill clear '{\"path\":\"/var/tmp/scratch.spill\",...}'";

pub(crate) const IDLE: &str = "\
EXAMPLES
  All pages in memory, until they are read or written:
  uzram idle scratch

  Pages that nobody has read or written for an hour:
  uzram idle scratch 3600";

pub(crate) const WRITEBACK: &str = "\
EXAMPLES
  Pages that were idle for an hour:
  uzram idle scratch 3600
  uzram writeback scratch type=idle

  Incompressible pages, and some pages by number:
  uzram writeback scratch type=huge page_index=7 page_indexes=100-199

  Limit writeback to 100 MiB of pages from now on, evictions included:
  uzram set scratch writeback_limit=25600 writeback_limit_enable=1";

pub(crate) const RECOMPRESS: &str = "\
EXAMPLES
  Pages that were idle for an hour, with the algorithm of --recompress:
  uzram idle scratch 3600
  uzram recompress scratch type=idle

  Pages that take 3000 bytes or more, with another algorithm:
  uzram recompress scratch threshold=3000 algo=zstd:9

  Two algorithms, the second for pages that the first makes no smaller:
  uzram set scratch 'recomp_algorithm=algo=lz4hc priority=1'
  uzram set scratch 'recomp_algorithm=algo=zstd:9 priority=2'
  uzram recompress scratch

  Without being asked:
  uzram serve scratch --size=8G --recompress=zstd:3 --after=600";

pub(crate) const SYNC: &str = "\
EXAMPLES
  uzram sync vm";

pub(crate) const TRAIN_DICT: &str = "\
EXAMPLES
  Of what is on a device, for what is recompressed there:
  uzram train-dict --device scratch scratch.dict
  uzram set scratch recomp_algorithm=algo=zstd
  uzram set scratch \\
      'algorithm_params=priority=1 level=9 dict=scratch.dict'
  uzram recompress scratch

  Of files:
  uzram train-dict --size 32K sources.dict src/*.c";

pub(crate) const RESET: &str = "\
EXAMPLES
  uzram reset scratch";

pub(crate) const UP: &str = "\
EXAMPLES
  /etc/uzram.toml has a table for each device:

      [scratch]
      size = \"8G\"
      mem-limit = \"1G\"
      backing = \"/var/tmp/scratch.spill\"
      mountpoint = \"/mnt/scratch\"

      [vm]
      size = \"4G\"
      nbd = [\"unix:/run/vm.sock\", \"tcp:127.0.0.1:10809\"]
      read-only = true

      [swap]
      size = \"4G\"
      mem-limit = \"1G\"
      backing = \"/var/lib/swap.spill\"
      swap-priority = 100

  One that survives restarts of the machine:

      [home]
      size = \"8G\"
      mem-limit = \"1G\"
      backing = \"/var/tmp/home.spill\"
      mountpoint = \"/mnt/home\"
      save = \"/var/lib/home.image\"

  All of them, or one:
  uzram up
  uzram up scratch

  The devices of systemd's zram-generator:
  uzram up --config /etc/systemd/zram-generator.conf

The keys of a table are the options of uzram serve and uzram mount, and three more. What has a `mountpoint` is \
mounted there. What has a `swap-priority`, -1 to 32767, is swapped to. What has a `save` is saved to that image \
by uzram down, and begins with it, once it is there. Without that all that is on a device is gone after uzram \
down; one with `restore` begins with the same image each time.";

pub(crate) const DOWN: &str = "\
EXAMPLES
  uzram down
  uzram down ./uzram.toml scratch

The data of a device is then gone, unless its table has an `origin` or a \
`save`.";

pub(crate) const TOP: &str = "\
EXAMPLES
  uzram top
  uzram top scratch --interval 5

COLUMNS
  SIZE        bytes in the device
  STORED      data on it, as its users see it
  SPILLED     the part of that which is in the backing, or still in the
              image that is being restored
  MEMORY      what the rest takes in memory, compressed
  LIMIT       the most that MEMORY may be
  RATIO       how many times as much data is in memory
  BACKING     what is spilled takes in the backing, compressed
  READ/S      requests to read in a second
  WRITE/S     requests to write in a second
  TO RESTORE  still only in the image that is being restored, compressed

A narrow terminal has no RATIO, then no SPILLED. q ends it, the arrows choose the device whose rates and pages \
are shown.";

pub(crate) const MAP: &str = "\
EXAMPLES
  uzram map scratch
  uzram map scratch scratch.svg
  uzram map scratch scratch.png
  uzram map scratch --json --cells 64";

pub(crate) const METRICS: &str = "\
EXAMPLES
  uzram metrics | grep memory

  A server serves its own, or writes them for node_exporter's collector:
  uzram serve scratch --size 8G --metrics tcp:127.0.0.1:9810
  uzram serve scratch --size 8G \\
      --metrics file:/var/lib/node_exporter/scratch.prom";

pub(crate) const COMPLETIONS: &str = "\
EXAMPLES
  uzram completions bash > /etc/bash_completion.d/uzram
  uzram completions fish > ~/.config/fish/completions/uzram.fish
  echo 'source <(uzram completions zsh)' >> ~/.zshrc

The script asks uzram, so that it knows the devices that are served. One in a file is to be printed anew \
after an upgrade of uzram.";

pub(crate) const MAN: &str = "\
EXAMPLES
  uzram man /usr/local/share/man/man1";

pub(crate) const STOP: &str = "\
EXAMPLES
  uzram stop scratch

  Although it is mounted or attached:
  uzram stop --force scratch

  With an image of it, for serve's --restore:
  uzram stop --save scratch.image scratch";
