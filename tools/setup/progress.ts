/** Says what set-up is doing: one line for each step that takes a while, with the time it has taken. */

/**
 * Runs `work` under a line that says so. On a terminal the line's clock runs; elsewhere a line every 30 seconds shows
 * that it is alive.
 *
 * @param about how long it usually takes ("about 4 minutes"), where that is worth saying.
 */
export async function step<T>(title: string, work: () => Promise<T>, about?: string): Promise<T> {
  const started = Date.now();
  const line = about === undefined ? title : `${title} (${about})`;
  const live = process.stderr.isTTY;
  const show = (end: string) => process.stderr.write(`${live ? "\r\x1b[K" : ""}${line} … ${end}`);
  if (live) show("");
  else process.stderr.write(`${line} …\n`);
  const clock = setInterval(
    () => {
      show(`${elapsed(started)}${live ? "" : "\n"}`);
    },
    live ? 1000 : 30_000,
  );
  try {
    const result = await work();
    // Where no clock runs, a step that was over at once needs no second line.
    if (live || Date.now() - started > 2000) show(`done in ${elapsed(started)}\n`);
    return result;
  } catch (error) {
    show(`failed after ${elapsed(started)}\n`);
    throw error;
  } finally {
    clearInterval(clock);
  }
}

/** Says one thing that a person should know. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** "0:35" since `started` (milliseconds of the epoch). */
export function elapsed(started: number): string {
  const seconds = Math.round((Date.now() - started) / 1000);
  return `${String(Math.floor(seconds / 60))}:${String(seconds % 60).padStart(2, "0")}`;
}
