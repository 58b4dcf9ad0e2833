/** One tab trains a job at a time: the others wait until it closes. */

/** Run `act` while this tab holds the lock of that name; `wait` is called once where another tab has it. */
export async function alone<T>(name: string, wait: () => void, act: () => Promise<T>): Promise<T> {
  const result = await navigator.locks.request(name, { ifAvailable: true }, async (lock) =>
    lock === null ? null : { value: await act() },
  );
  if (result !== null) return result.value;
  wait();
  return navigator.locks.request(name, act);
}
