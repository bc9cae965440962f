import cliProgress from 'cli-progress';

const { Format, SingleBar } = cliProgress;

/** A line on stderr that shows how far something is. */
export interface Progress {
  update(done: number, total: number): void;
  stop(): void;
}

/** A progress bar; nothing where stderr is no terminal. */
export function progressBar(label: string): Progress {
  const { stderr } = process;
  if (!stderr.isTTY) return { update() {}, stop() {} };
  const bar = new SingleBar({
    stream: stderr,
    format: `${label} {bar} {percentage}% {eta_formatted}`,
    barsize: 24,
    barCompleteChar: '━',
    barIncompleteChar: ' ',
    clearOnComplete: true,
    // Ctrl-C is ours: its own handler would keep the program from ending.
    gracefulExit: false,
    // What it changes of the terminal, a program that is ended cannot undo.
    linewrap: true,
    hideCursor: false,
    formatTime: (seconds, options) =>
      seconds > 0 ? Format.TimeFormat(seconds, options, 1) : '',
  });
  let started = false;
  return {
    update(done, total) {
      if (!started) bar.start(total, done);
      else {
        bar.setTotal(total);
        bar.update(done);
      }
      started = true;
    },
    stop: () => bar.stop(),
  };
}

/** Runs `work` under a progress bar, which goes whatever happens. */
export async function withProgress<T>(
  label: string,
  work: (update: Progress['update']) => Promise<T>,
): Promise<T> {
  const bar = progressBar(label);
  try {
    return await work(bar.update);
  } finally {
    bar.stop();
  }
}
